// The sampling rule, one cluster of RANKS blocks a row: the row is read once and stays in the blocks' shared memory.
//
// The definition is outrider_shared.sampling.rule; this follows it operation by operation:
//   * logits, edits of single tokens (penalties, bias) and the mask give z; the greedy choice is its lowest argmax;
//   * scores are (z - max z) / T in float32;
//   * top-k and top-p find a score threshold by radix selection over the 31 bits of -score: exact, with ties kept. The
//     mass of top-p is summed in fixed point (2^-45), so no order of threads changes it, nor does the number of BINS that
//     a pass of the selection sorts into: fewer take more passes, and less shared memory;
//   * what is left gets the noise of (seed, position, token); a token that could not win with the largest noise there is
//     gets none.
// Logarithms are the device's and may differ from numpy's in the last place.
#include "device.cuh"

#define BINS (1 << BIN_BITS)
#define MOST_NOISE 22.9f  // -log(-log1p(-2^-33)) is 22.87
#define MASS_UNIT 35184372088832.0  // 2^45

struct Record {  // of one row; floats by their bits
  float temperature;
  int top_k;
  float top_p, log_min_p;
  unsigned seed_low, seed_high;
  int position, wants_logprob, first_edit, edits, mask, unused;
};

struct Shared {
  float value[32];
  int token[32];
  float best_value;  // read by the cluster
  int best_token;
  float sum;
  float scratch[33];
  unsigned long long bins[BINS];    // read by the cluster
  unsigned long long totals[BINS];
  unsigned long long before;
  int bin;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the scores of a rank lie behind it");

__device__ __forceinline__ bool better(float value, int token, float than, int than_token) {
  return value > than || (value == than && token < than_token);
}

// The largest value of the cluster, of equal ones that with the lowest token; all threads get it.
__device__ __forceinline__ void cluster_best(Shared* shared, float& value, int& token) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int round = 0; round < 2; ++round) {
    for (int step = 16; step; step >>= 1) {
      const float other = __shfl_xor_sync(FULL_WARP, value, step);
      const int other_token = __shfl_xor_sync(FULL_WARP, token, step);
      if (better(other, other_token, value, token)) {
        value = other;
        token = other_token;
      }
    }
    if (round == 0) {
      if (lane == 0) {
        shared->value[warp] = value;
        shared->token[warp] = token;
      }
      __syncthreads();
      value = lane < warps ? shared->value[lane] : NEGATIVE_INFINITY;
      token = lane < warps ? shared->token[lane] : 0x7fffffff;
    }
  }
  if (threadIdx.x == 0) {
    shared->best_value = value;
    shared->best_token = token;
  }
  cluster_sync();
  for (unsigned rank = 0; rank < RANKS; ++rank) {
    const float other = *cluster_peer(&shared->best_value, rank);
    const int other_token = *cluster_peer(&shared->best_token, rank);
    if (better(other, other_token, value, token)) {
      value = other;
      token = other_token;
    }
  }
  cluster_sync();
}

// Sum over the cluster, ranks in order.
__device__ __forceinline__ float cluster_sum(Shared* shared, float value) {
  value = block_sum(value, shared->scratch);
  if (threadIdx.x == 0) shared->sum = value;
  cluster_sync();
  value = 0.f;
  for (unsigned rank = 0; rank < RANKS; ++rank) value += *cluster_peer(&shared->sum, rank);
  cluster_sync();
  return value;
}

// Adds to a sum in shared memory by its halves: of 32 bits a card has an atomic addition there, of 64 it makes a loop.
__device__ __forceinline__ void add_shared(unsigned long long* sum, unsigned long long value) {
  unsigned* half = reinterpret_cast<unsigned*>(sum);
  const unsigned low = (unsigned)value, before = atomicAdd(half, low);
  const unsigned high = (unsigned)(value >> 32) + (before + low < low);  // whoever wraps the low half carries
  if (high) atomicAdd(half + 1, high);
}

__device__ __forceinline__ unsigned key_of(float score) { return __float_as_uint(score) & 0x7fffffffu; }

// Of the scores with a key up to `limit`, the key at which the running count reaches `top_k` (or, with top_k = 0, the
// running mass reaches top_p of the whole), from the largest score down.
__device__ __forceinline__ unsigned select_key(Shared* shared, const float* scores, int count, unsigned limit, int top_k,
                                               float top_p) {
  unsigned prefix = 0;
  unsigned long long before = 0;
  double target = (double)top_k;
  for (int shift = 31 - BIN_BITS, bits = BIN_BITS; bits > 0; bits = min(BIN_BITS, shift), shift -= bits) {
    const bool all_bits = shift + bits == 31;
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) shared->bins[i] = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const unsigned key = key_of(scores[i]);
      if (key > limit || (!all_bits && key >> (shift + bits) != prefix)) continue;
      const unsigned bin = key >> shift & ((1u << bits) - 1);
      if (top_k > 0)
        add_shared(&shared->bins[bin], 1);
      else if (scores[i] > -32.f)
        add_shared(&shared->bins[bin], __double2ull_rn(exp((double)scores[i]) * MASS_UNIT));
    }
    cluster_sync();
    for (int i = threadIdx.x; i < BINS; i += blockDim.x) {
      unsigned long long all = 0;
      for (unsigned rank = 0; rank < RANKS; ++rank) all += *cluster_peer(&shared->bins[i], rank);
      shared->totals[i] = all;
    }
    cluster_sync();
    if (threadIdx.x < 32) {  // each lane owns a run of bins
      const int lane = threadIdx.x, run = BINS / 32;
      unsigned long long own = 0;
      for (int i = 0; i < run; ++i) own += shared->totals[lane * run + i];
      unsigned long long through = own;
      for (int step = 1; step < 32; step <<= 1) {
        const unsigned long long lower = __shfl_up_sync(FULL_WARP, through, step);
        if (lane >= step) through += lower;
      }
      const unsigned long long whole = __shfl_sync(FULL_WARP, through, 31);
      if (top_k == 0 && all_bits) target = (double)top_p * (double)whole;
      const unsigned reached = __ballot_sync(FULL_WARP, own > 0 && (double)(before + through) >= target);
      const unsigned filled = __ballot_sync(FULL_WARP, own > 0);
      const int owner = reached ? __ffs((int)reached) - 1 : 31 - __clz((int)filled);
      if (lane == owner) {
        unsigned long long running = before + through - own;
        int bin = lane * run, last = bin;
        unsigned long long last_before = running;
        for (int i = 0; i < run; ++i, ++bin) {
          if (shared->totals[bin] == 0) continue;
          last = bin;
          last_before = running;
          running += shared->totals[bin];
          if ((double)running >= target) break;
        }
        shared->bin = last;
        shared->before = last_before;
      }
      target = __shfl_sync(FULL_WARP, target, 0);
    }
    __syncthreads();
    prefix = prefix << bits | (unsigned)shared->bin;
    before = shared->before;  // not written again before the next level's barriers
  }
  return prefix;
}

__device__ __forceinline__ void philox(unsigned (&c)[4], unsigned k0, unsigned k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
    const unsigned high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

__device__ __forceinline__ float gumbel(unsigned bits) {
  const float w = fminf(((float)bits + 0.5f) * 2.3283064365386963e-10f, 0.99999994039535522f);
  return -logf(-log1pf(-w));
}

// Grid (rows * RANKS), THREADS threads; dynamic shared memory: Shared, then a float for each of `span` tokens.
extern "C" __global__ void CLUSTER(RANKS) __launch_bounds__(THREADS, 1) sample_rows(
    const half_t* __restrict__ logits,      // [rows, vocabulary]
    int vocabulary, int span,               // tokens of a rank, a multiple of 8
    const Record* __restrict__ records,     // [rows]
    const int* __restrict__ rows,           // [1] rows that count; the others are padding
    const int* __restrict__ edits,          // [edits, 5] token, and as float bits: repetition, frequency, presence, bias
    const unsigned* __restrict__ masks, int mask_words,  // [masks, words] bit v % 32 of word v / 32: token v is allowed
    int top_n,
    int* __restrict__ chosen,               // [rows, 2] token; 1 if a logit of the row is no number
    float* __restrict__ logprobs,           // [rows] of the chosen token under softmax(logits), where wanted
    int* __restrict__ top_tokens, float* __restrict__ top_logprobs) {  // [rows, top_n] likeliest first, where wanted
  DYNAMIC_SHARED(Shared, shared);
  float* scores = reinterpret_cast<float*>(shared + 1);
  const int rank = blockIdx.x % RANKS, row = blockIdx.x / RANKS, first = rank * span;
  const int count = max(0, min(span, vocabulary - first));
  if (row >= rows[0]) return;
  const Record record = records[row];
  const half_t* from = logits + (size_t)row * vocabulary + first;

  bool nan = false;
  if (vocabulary % 8 == 0) {
    for (int i = 8 * threadIdx.x; i < count; i += 8 * blockDim.x) {
      const uint4 bits = *reinterpret_cast<const uint4*>(from + i);
      const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const float value = to_float((half_t)(words[j / 2] >> (j % 2 * 16)));
        scores[i + j] = value;
        nan |= value != value;
      }
    }
  } else {
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      scores[i] = to_float(from[i]);
      nan |= scores[i] != scores[i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < record.edits; i += blockDim.x) {
    const int* edit = edits + 5 * (size_t)(record.first_edit + i);
    const int place = edit[0] - first;
    if (place < 0 || place >= count) continue;
    const float repetition = __int_as_float(edit[1]);
    float z = scores[place];
    if (repetition != 1.f) z = z > 0.f ? z / repetition : z * repetition;
    scores[place] = ((z - __int_as_float(edit[2])) - __int_as_float(edit[3])) + __int_as_float(edit[4]);
  }
  __syncthreads();

  float best = NEGATIVE_INFINITY;
  int token = 0x7fffffff;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    if (record.mask >= 0) {
      const int v = first + i;
      if (!(masks[(size_t)record.mask * mask_words + v / 32] >> (v % 32) & 1)) scores[i] = NEGATIVE_INFINITY;
    }
    if (better(scores[i], first + i, best, token)) {
      best = scores[i];
      token = first + i;
    }
  }
  cluster_best(shared, best, token);
  const float numbers = cluster_sum(shared, nan ? 1.f : 0.f);

  if (record.temperature > 0.f && best > NEGATIVE_INFINITY) {
    for (int i = threadIdx.x; i < count; i += blockDim.x) scores[i] = (scores[i] - best) / record.temperature;
    __syncthreads();
    unsigned limit = 0x7f800000u;
    if (record.top_k > 0 && record.top_k < vocabulary)
      limit = select_key(shared, scores, count, limit, record.top_k, 0.f);
    if (record.top_p < 1.f) limit = min(limit, select_key(shared, scores, count, limit, 0, record.top_p));
    best = NEGATIVE_INFINITY;
    token = 0x7fffffff;
    for (int i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x) {
      float kept[4];
      bool hope = false;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        kept[j] = i + j < count ? scores[i + j] : NEGATIVE_INFINITY;
        if (key_of(kept[j]) > limit || kept[j] < record.log_min_p) kept[j] = NEGATIVE_INFINITY;
        hope |= kept[j] > NEGATIVE_INFINITY && kept[j] + MOST_NOISE >= best;
      }
      if (!hope) continue;
      unsigned bits[4] = {(unsigned)(first + i) / 4, (unsigned)record.position, 0, 0};
      philox(bits, record.seed_low, record.seed_high);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float value = kept[j] + gumbel(bits[j]);
        if (kept[j] > NEGATIVE_INFINITY && better(value, first + i + j, best, token)) {
          best = value;
          token = first + i + j;
        }
      }
    }
    cluster_best(shared, best, token);
  }
  if (token >= vocabulary) token = 0;  // only where nothing is a number
  if (rank == 0 && threadIdx.x == 0) {
    chosen[2 * row] = token;
    chosen[2 * row + 1] = numbers > 0.f;
  }
  if (!record.wants_logprob) return;

  // Log-probabilities are those of the logits as the model gave them.
  float most = NEGATIVE_INFINITY;
  int likeliest = 0x7fffffff;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const float z = to_float(from[i]);
    if (better(z, first + i, most, likeliest)) {
      most = z;
      likeliest = first + i;
    }
  }
  cluster_best(shared, most, likeliest);
  float sum = 0.f;
  for (int i = threadIdx.x; i < count; i += blockDim.x) sum += expf(to_float(from[i]) - most);
  const float normaliser = most + logf(cluster_sum(shared, sum));
  if (rank == 0 && threadIdx.x == 0) logprobs[row] = to_float(logits[(size_t)row * vocabulary + token]) - normaliser;
  for (int n = 0; n < top_n; ++n) {
    if (rank == 0 && threadIdx.x == 0) {
      top_tokens[(size_t)row * top_n + n] = likeliest;
      top_logprobs[(size_t)row * top_n + n] = most - normaliser;
    }
    float next = NEGATIVE_INFINITY;
    int next_token = 0x7fffffff;
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const float z = to_float(from[i]);
      if (better(most, likeliest, z, first + i) && better(z, first + i, next, next_token)) {
        next = z;
        next_token = first + i;
      }
    }
    cluster_best(shared, next, next_token);
    most = next;
    likeliest = next_token;
  }
}
