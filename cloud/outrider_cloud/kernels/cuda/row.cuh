// A row of logits as sampling.cu reads it: what is asked of it, a rank's part of it, and what a cluster finds in common.
#define WARPS (THREADS / 32)
#define BINS 256

struct Record {  // of one row; floats by their bits
  float temperature;
  int top_k;
  float top_p, log_min_p;
  unsigned seed_low, seed_high;
  int position, wants_logprob, first_edit, edits, mask, unused;
};

struct Told {  // by a block to its cluster
  float value;
  int token;
  unsigned flags;
};
enum { NAN_SEEN = 1, LISTS_FULL = 2 };

struct Shared {
  Told warps[32], told[2];
  int top;              // the largest logit so far, as `ordered`
  int listed[WARPS];    // entries of each warp; read by the cluster, like all up to `bins`
  float tails[WARPS];
  unsigned limit;       // what rank 0 found, and whether it could
  int decided;
  unsigned long long sum;
  unsigned long long bins[BINS];
  unsigned long long totals[BINS];
  unsigned long long before, whole;  // of `select`
  double others;
  int bin, sure;
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the lists lie behind it");

__device__ __forceinline__ bool better(float value, int token, float than, int than_token) {
  return value > than || (value == than && token < than_token);
}
__device__ __forceinline__ int ordered(float value) {
  const int bits = __float_as_int(value);
  return bits < 0 ? bits ^ 0x7fffffff : bits;
}
__device__ __forceinline__ float unordered(int bits) { return __int_as_float(bits < 0 ? bits ^ 0x7fffffff : bits); }
__device__ __forceinline__ float low(unsigned pair) { return to_float((half_t)pair); }
__device__ __forceinline__ float high(unsigned pair) { return to_float((half_t)(pair >> 16)); }
__device__ __forceinline__ unsigned key_of(float score) { return __float_as_uint(score) & 0x7fffffffu; }
__device__ __forceinline__ float warp_max(float value) {
  for (int step = 16; step; step >>= 1) value = fmaxf(value, __shfl_xor_sync(FULL_WARP, value, step));
  return value;
}

// The largest value of the cluster, of equal ones that with the lowest token, and all flags; all threads get them. `turn`
// alternates from exchange to exchange: whoever writes a slot again has passed the barrier behind all reads of it.
__device__ __forceinline__ void cluster_best(Shared* shared, int& turn, float& value, int& token, unsigned& flags) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int round = 0; round < 2; ++round) {
    for (int step = 16; step; step >>= 1) {
      const float other = __shfl_xor_sync(FULL_WARP, value, step);
      const int other_token = __shfl_xor_sync(FULL_WARP, token, step);
      flags |= __shfl_xor_sync(FULL_WARP, flags, step);
      if (better(other, other_token, value, token)) {
        value = other;
        token = other_token;
      }
    }
    if (round == 0) {
      if (lane == 0) shared->warps[warp] = Told{value, token, flags};
      __syncthreads();
      const Told given = lane < WARPS ? shared->warps[lane] : Told{NEGATIVE_INFINITY, 0x7fffffff, 0};
      value = given.value;
      token = given.token;
      flags = given.flags;
    }
  }
  turn ^= 1;
  if (threadIdx.x == 0) shared->told[turn] = Told{value, token, flags};
  cluster_sync();
  for (unsigned rank = 0; rank < RANKS; ++rank) {
    const Told other = *cluster_peer(&shared->told[turn], rank);
    flags |= other.flags;
    if (better(other.value, other.token, value, token)) {
      value = other.value;
      token = other.token;
    }
  }
}

// Adds to a sum in shared memory by its halves: of 32 bits a card has an atomic addition there, of 64 it makes a loop.
__device__ __forceinline__ void add_shared(unsigned long long* sum, unsigned long long value) {
  unsigned* half = reinterpret_cast<unsigned*>(sum);
  const unsigned low = (unsigned)value, before = atomicAdd(half, low);
  const unsigned high = (unsigned)(value >> 32) + (before + low < low);  // whoever wraps the low half carries
  if (high) atomicAdd(half + 1, high);
}

// The part of a row that a rank reads.
struct Part {
  const half_t* from;
  int first, count, span, vocabulary;
  const int* edits;      // [edits, 5]
  int many;
  const unsigned* mask;  // of the whole row, or null
  const unsigned* edited;  // a bit for each own token; null without edits

  __device__ __forceinline__ bool allowed(int token) const { return !mask || mask[token / 32] >> (token % 32) & 1; }

  // Eight own tokens from place i on as they lie in memory, minus infinity behind the end.
  __device__ __forceinline__ uint4 load(int i) const {
    uint4 words = {INFINITE_PAIR, INFINITE_PAIR, INFINITE_PAIR, INFINITE_PAIR};
    if (i >= count) return words;
    if (vocabulary % 8 == 0) return *reinterpret_cast<const uint4*>(from + i);
    unsigned* word = &words.x;
#pragma unroll
    for (int j = 0; j < 8; ++j)
      if (i + j < count) word[j / 2] = word[j / 2] & 0xffff0000u >> (j % 2 * 16) | (unsigned)from[i + j] << (j % 2 * 16);
    return words;
  }

  // Calls take(words, token) with eight tokens at a time, as often in every thread; forbidden and edited ones are minus
  // infinity. Returns the largest of each half of the words, no number if one of them is none.
  template <class Take>
  __device__ __forceinline__ unsigned stream(Take take) const {
    unsigned numbers = INFINITE_PAIR;
    uint4 next = load(8 * threadIdx.x), later = load(8 * (threadIdx.x + THREADS));
    for (int i = 8 * threadIdx.x, base = 0; base < span; base += 8 * THREADS, i += 8 * THREADS) {
      uint4 words = next;
      next = later;
      later = load(i + 16 * THREADS);
      numbers = max_or_nan(max_or_nan(numbers, max_or_nan(words.x, words.y)), max_or_nan(words.z, words.w));
      unsigned kept = 0xff;
      if (i < count) {
        if (mask) kept = mask[(first + i) / 32] >> (i % 32) & 0xff;
        if (edited) kept &= ~(edited[i / 32] >> (i % 32));
      }
      if (kept != 0xff) {
        unsigned* word = &words.x;
#pragma unroll
        for (int j = 0; j < 8; ++j)
          if (!(kept >> j & 1))
            word[j / 2] = word[j / 2] & 0xffff0000u >> (j % 2 * 16) | (INFINITE_PAIR & 0xffffu << (j % 2 * 16));
      }
      take(words, first + i);
    }
    return numbers;
  }

  // The logit of an edit, minus infinity where it is none of this rank's or forbidden; what it was may be no number.
  __device__ __forceinline__ float after_edit(int i, int& token, bool& nan) const {
    const int* edit = edits + 5 * (size_t)i;
    token = edit[0];
    if (token < first || token >= first + count) return NEGATIVE_INFINITY;
    float z = to_float(from[token - first]);
    nan |= z != z;
    const float repetition = __int_as_float(edit[1]);
    if (repetition != 1.f) z = z > 0.f ? z / repetition : z * repetition;
    z = ((z - __int_as_float(edit[2])) - __int_as_float(edit[3])) + __int_as_float(edit[4]);
    return allowed(token) ? z : NEGATIVE_INFINITY;
  }

  // Calls take(z, token) with each edit, as often in every thread.
  template <class Take>
  __device__ __forceinline__ bool each_edit(Take take) const {
    bool nan = false;
#pragma unroll 1
    for (int i = threadIdx.x, base = 0; base < many; base += THREADS, i += THREADS) {
      int token = 0x7fffffff;
      const float z = i < many ? after_edit(i, token, nan) : NEGATIVE_INFINITY;
      take(z, token);
    }
    return nan;
  }

  // Calls take(z, token) with each own token by itself, slowly; an edited one comes as minus infinity, too.
  template <class Take>
  __device__ __forceinline__ void each(Take take) const {
    bool nan = false;
#pragma unroll 1
    for (int i = threadIdx.x; i < count + many; i += THREADS) {
      int token = first + i;
      float z = NEGATIVE_INFINITY;
      if (i >= count)
        z = after_edit(i - count, token, nan);
      else if (allowed(token) && !(edited && edited[i / 32] >> (i % 32) & 1))
        z = to_float(from[i]);
      take(z, token);
    }
  }
};

__device__ __forceinline__ bool is_nan(unsigned pair) { return low(pair) != low(pair) || high(pair) != high(pair); }
__device__ __forceinline__ float largest(const uint4& words) {
  const unsigned pair = max_pair(max_pair(words.x, words.y), max_pair(words.z, words.w));
  return fmaxf(low(pair), high(pair));
}
