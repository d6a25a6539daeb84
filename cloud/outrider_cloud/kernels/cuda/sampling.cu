// The sampling rule in one read of the logits: each row is cut over a cluster of RANKS blocks, which keep of it what can win.
//
// The definition is outrider_shared.sampling.rule; this follows it operation by operation:
//   * logits, edits of single tokens (penalties, bias) and the mask give z; the greedy choice is its lowest argmax;
//   * scores are (z - max z) / T in float32;
//   * top-k and top-p find a score threshold by radix selection over the 31 bits of -score: exact, with ties kept. The
//     mass of top-p is summed in fixed point (2^-45), so no order of threads changes it;
//   * what is left gets the noise of (seed, position, token).
// Logarithms are the device's and may differ from numpy's in the last place.
//
// While a row streams by, its maximum is not known yet, only that of what was seen (`Reach::top`). A row without filters
// makes the noise of its tokens at once, and lists those that come close to the best so far. A row with filters lists the
// tokens that are not far below the maximum, and adds up what the others weigh, about; top-p is decided among the listed
// if that error cannot change the outcome. What is listed is then computed as the rule says. Where the lists do not hold
// enough or leave a doubt, the row is read again with another end of the lists, and at last everything is computed. So what a thread saw
// first decides how long a choice takes, and never which it is.
#include "device.cuh"
#include "row.cuh"
#include "noise.cuh"
#include "selection.cuh"
#include "stream.cuh"

#define WEIGHT_UNIT 1099511627776.f  // 2^40
#define ATTEMPTS 3  // to list what is needed
// On a multiprocessor; from capability 12.0 on its shared memory holds one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
#define BLOCKS 1
#else
#define BLOCKS 2
#endif

// A bit for each edited token of the rank.
__device__ __forceinline__ void mark_edited(const Part& part, unsigned* edited) {
  if (!part.many) return;
  for (int i = threadIdx.x; i < part.span / 32; i += THREADS) edited[i] = 0;
  __syncthreads();
  for (int i = threadIdx.x; i < part.many; i += THREADS) {
    const int place = part.edits[5 * (size_t)i] - part.first;
    if (place >= 0 && place < part.count) atomicOr(&edited[place / 32], 1u << (place % 32));
  }
}

// The greedy choice of each thread's tokens.
__device__ __forceinline__ unsigned likeliest_of(const Part& part, float& best, int& token) {
  uint4 kept = {0, 0, 0, 0};
  const unsigned numbers = part.stream([&](const uint4& words, int at) {
    const float most = largest(words);
    if (!(most > best)) return;
    best = most;
    token = at;
    kept = words;
  });
  if (token < 0x7fffffff) {
    const unsigned pairs[4] = {kept.x, kept.y, kept.z, kept.w};
    int place = 0;
#pragma unroll
    for (int j = 7; j >= 0; --j)
      if ((j % 2 ? high(pairs[j / 2]) : low(pairs[j / 2])) == best) place = j;
    token += place;
  }
  const bool nan = part.each_edit([&](float z, int at) {
    if (!(z > NEGATIVE_INFINITY) || !better(z, at, best, token)) return;
    best = z;
    token = at;
  });
  return nan || is_nan(numbers) ? NAN_SEEN : 0;
}

// Calls take(score) with what each warp of the same number has listed in the cluster.
struct Listed {
  Shared* shared;
  Entry* lists;
  int room;

  template <class Take>
  __device__ __forceinline__ void operator()(Take take) const {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll 1
    for (unsigned rank = 0; rank < RANKS; ++rank) {
      const int many = *cluster_peer(&shared->listed[warp], rank);
      const Entry* entries = cluster_peer(lists + warp * room, rank);
#pragma unroll 1
      for (int i = lane; i < many; i += 32) take(entries[i].value);
    }
  }
};

// Rank 0 finds the limit of top-k and top-p among what the cluster has listed.
__device__ __forceinline__ void select_listed(Shared* shared, Entry* lists, int room, const Record& record,
                                              int vocabulary, bool chances) {
  if (threadIdx.x == 0) {  // the first barrier of `select` comes before others look
    double others = 0.;
    for (int i = 0; i < RANKS * WARPS; ++i) others += (double)*cluster_peer(&shared->tails[i % WARPS], i / WARPS);
    shared->others = others * MASS_UNIT;
  }
  unsigned limit;
  const bool decided = select<false>(shared, Listed{shared, lists, room}, record, counts_tokens(record, vocabulary), chances, limit);
  if (threadIdx.x == 0) {
    shared->limit = limit;
    shared->decided = decided;
  }
}

// Calls take(score, token) with each own token, read again.
struct Every {
  const Part& part;
  float maximum, temperature;

  template <class Take>
  __device__ __forceinline__ void tokens(Take take) const {
    part.each([&](float z, int at) { take((z - maximum) / temperature, at); });
  }
  template <class Take>
  __device__ __forceinline__ void operator()(Take take) const {
    tokens([&](float score, int) { take(score); });
  }
};

// The choice of a row by all of its tokens.
__device__ __forceinline__ void choose_among_all(Shared* shared, const Every& every, const Record& record, int vocabulary,
                                                 float& best, int& token) {
  unsigned limit;
  select<true>(shared, every, record, counts_tokens(record, vocabulary), true, limit);
  every.tokens([&](float score, int at) {
    if (key_of(score) > limit || score < record.log_min_p || !(score > NEGATIVE_INFINITY)) return;
    if (score + MOST_NOISE < best) return;
    const float value = score + noise_of(record, at);
    if (better(value, at, best, token)) {
      best = value;
      token = at;
    }
  });
}

// Of a row's logits the largest that comes behind (than, than_token).
__device__ __forceinline__ void next_likely(const Part& part, float than, int than_token, float& value, int& token) {
  value = NEGATIVE_INFINITY;
  token = 0x7fffffff;
  part.each([&](float z, int at) {
    if (!better(than, than_token, z, at) || !better(z, at, value, token)) return;
    value = z;
    token = at;
  });
}

// The sum of e^(logit - most) over the cluster, once in a kernel: in fixed point, so the same in any order and for any RANKS.
__device__ __forceinline__ float cluster_weight(Shared* shared, const Part& part, float most) {
  unsigned long long sum = 0, whole = 0;
  part.each([&](float z, int) {
    const float weight = expf(z - most);
    if (weight > 0.f) sum += (unsigned long long)(weight * WEIGHT_UNIT);
  });
  for (int step = 16; step; step >>= 1) sum += __shfl_xor_sync(FULL_WARP, sum, step);
  if (threadIdx.x % 32 == 0) add_shared(&shared->sum, sum);
  cluster_sync();
  for (unsigned rank = 0; rank < RANKS; ++rank) whole += *cluster_peer(&shared->sum, rank);
  return (float)((double)whole / WEIGHT_UNIT);
}

// Grid (rows * RANKS), THREADS threads; dynamic shared memory: Shared, then `room` entries for each warp, then a bit for
// each of `span` tokens.
extern "C" __global__ void CLUSTER(RANKS) __launch_bounds__(THREADS, BLOCKS) sample_rows(
    const half_t* __restrict__ logits,      // [rows, vocabulary]
    int vocabulary, int span, int room,     // tokens of a rank, a multiple of 32
    const Record* __restrict__ records,     // [rows]
    const int* __restrict__ rows,           // [1] rows that count; the others are padding
    const int* __restrict__ edits,          // [edits, 5] token, and as float bits: repetition, frequency, presence, bias
    const unsigned* __restrict__ masks, int mask_words,  // [masks, words] bit v % 32 of word v / 32: token v is allowed
    int top_n,
    int* __restrict__ chosen,               // [rows, 2] token; 1 if a logit of the row is no number
    float* __restrict__ logprobs,           // [rows] of the chosen token under softmax(logits), where wanted
    int* __restrict__ top_tokens, float* __restrict__ top_logprobs) {  // [rows, top_n] likeliest first, where wanted
  DYNAMIC_SHARED(Shared, shared);
  Entry* lists = reinterpret_cast<Entry*>(shared + 1);
  unsigned* edited = reinterpret_cast<unsigned*>(lists + WARPS * room);
  const auto part_of = [&](unsigned block, const Record& asked) -> Part {
    const int first = block % RANKS * span;
    return {logits + (size_t)(block / RANKS) * vocabulary + first, first, max(0, min(span, vocabulary - first)), span, vocabulary,
            edits + 5 * (size_t)asked.first_edit, asked.edits,
            asked.mask >= 0 ? masks + (size_t)asked.mask * mask_words : nullptr, asked.edits ? edited : nullptr};
  };
  if (blockIdx.x / RANKS >= rows[0]) return;
  if (threadIdx.x == 0) {
    shared->top = ordered(LEAST_FLOAT);
    shared->sum = 0;
  }
  mark_edited(part_of(blockIdx.x, records[blockIdx.x / RANKS]), edited);
  __syncthreads();

  float best = NEGATIVE_INFINITY;
  int token = 0x7fffffff, turn = 0;
  unsigned flags = 0, none = 0;
  if (!(records[blockIdx.x / RANKS].temperature > 0.f)) {
    flags = likeliest_of(part_of(blockIdx.x, records[blockIdx.x / RANKS]), best, token);
    cluster_best(shared, turn, best, token, flags);
  } else {
    const bool counts = counts_tokens(records[blockIdx.x / RANKS], vocabulary);
    const bool selects = counts || records[blockIdx.x / RANKS].top_p < 1.f;
    float least = first_least(records[blockIdx.x / RANKS], counts), maximum = LEAST_FLOAT;
    bool decided = false;
    Reach reach;
    // What a row asks for is read again where it is needed: two blocks share a multiprocessor's registers.
#pragma unroll 1
    for (int attempt = 0; attempt < ATTEMPTS && !decided; ++attempt) {
      const unsigned block = block_again();
      const Record& asked = records[block / RANKS];
      reach = {maximum, fminf(LOG2E / asked.temperature, -LEAST_FLOAT), LEAST_NOISE * LOG2E, 0.f,
               {lists + threadIdx.x / 32 * room, room, 0}, 0};
      const Part part = part_of(block, asked);
      const unsigned numbers = least > NEGATIVE_INFINITY ? stream_scores(shared, part, reach, least)
                                                         : stream_noise(shared, part, asked, reach);
      best = reach.top > LEAST_FLOAT ? reach.top : NEGATIVE_INFINITY;
      token = 0x7fffffff;
      flags = (is_nan(numbers) ? NAN_SEEN : 0) | (reach.list.many > room ? LISTS_FULL : 0);
      if (asked.temperature < LEAST_TEMPERATURE) flags |= LISTS_FULL;
      cluster_best(shared, turn, best, token, flags);
      maximum = best;
      if (!(best > NEGATIVE_INFINITY)) break;
      if (flags & LISTS_FULL) {
        if (!(least > NEGATIVE_INFINITY) || records[block_again() / RANKS].temperature < LEAST_TEMPERATURE) break;
        if (selects) least *= 0.8f;
        continue;
      }
      // A little less far, so that nothing beyond it is missing.
      settle(reach, best, records[block_again() / RANKS].temperature, selects ? least + 0.02f : least);
      decided = true;
      if (!selects) break;
      const float tail = warp_sum(reach.tail);
      if (threadIdx.x % 32 == 0) {
        shared->listed[threadIdx.x / 32] = reach.list.many;
        shared->tails[threadIdx.x / 32] = tail;
      }
      cluster_sync();
      if (block_again() % RANKS == 0)
        select_listed(shared, lists, room, records[block_again() / RANKS], vocabulary, least < -NO_CHANCE * LOG2E + 0.1f);
      cluster_sync();
      decided = *cluster_peer(&shared->decided, 0);
      if (!decided) least = fmaxf(1.7f * least, -NO_CHANCE * LOG2E);
    }
    if (maximum > NEGATIVE_INFINITY) {
      const unsigned block = block_again();
      const Record& asked = records[block / RANKS];
      best = NEGATIVE_INFINITY;
      token = 0x7fffffff;
      if (!decided) {
        const Part again = part_of(block, asked);
        choose_among_all(shared, Every{again, maximum, asked.temperature}, asked, vocabulary, best, token);
      }
      const unsigned limit = selects ? *cluster_peer(&shared->limit, 0) : 0x7f800000u;
#pragma unroll 1
      for (int i = decided ? threadIdx.x % 32 : reach.list.many; i < reach.list.many; i += 32) {
        const Entry entry = reach.list.entries[i];
        if (key_of(entry.value) > limit || entry.value < asked.log_min_p) continue;
        const float value = entry.value + noise_of(asked, entry.token);
        if (better(value, entry.token, best, token)) {
          best = value;
          token = entry.token;
        }
      }
      cluster_best(shared, turn, best, token, none);
    }
  }
  if (token >= vocabulary) token = 0;  // only where nothing is a number
  const int row = block_again() / RANKS;
  const bool tells = block_again() % RANKS == 0 && threadIdx.x == 0;
  if (tells) {
    chosen[2 * row] = token;
    chosen[2 * row + 1] = (flags & NAN_SEEN) != 0;
  }

  if (records[row].wants_logprob) {  // of the logits as the model gave them
    Part given = part_of(block_again(), records[row]);
    given.mask = given.edited = nullptr;
    given.many = 0;
    float most, next;
    int likeliest, next_token;
    next_likely(given, -NEGATIVE_INFINITY, -1, most, likeliest);
    cluster_best(shared, turn, most, likeliest, none);
    const float normaliser = most + logf(cluster_weight(shared, given, most));
    if (tells) logprobs[row] = to_float(logits[(size_t)row * vocabulary + token]) - normaliser;
    for (int n = 0; n < top_n; ++n) {
      if (tells) {
        top_tokens[(size_t)row * top_n + n] = likeliest;
        top_logprobs[(size_t)row * top_n + n] = most - normaliser;
      }
      next_likely(given, most, likeliest, next, next_token);
      cluster_best(shared, turn, next, next_token, none);
      most = next;
      likeliest = next_token;
    }
  }
  cluster_sync();  // a block must not end while others read what it told
}
