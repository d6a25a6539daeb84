// What a warp keeps of a row that streams by, and what becomes of it once the maximum is known.
#define LOG2E 1.4426950408889634f
#define NO_CHANCE 26.f        // no noise lets a score below -26 win, see noise.cuh
#define NO_MASS_BITS 46.2f    // below -32 they weigh nothing
#define SLACK_BITS 0.0015f    // more than the error of what is computed while it streams by
#define LEAST_FLOAT -3.402823466e38f
#define LEAST_TEMPERATURE 1e-30f    // below, 1 / T is no number to compute with

struct Entry {
  float value;  // the logit, later its score
  int token;
};

// What a warp lists.
struct List {
  Entry* entries;
  int room, many;

  __device__ __forceinline__ void add(bool wanted, float value, int token) {
    const unsigned lanes = __ballot_sync(FULL_WARP, wanted);
    const int at = many + __popc(lanes & ((1u << threadIdx.x % 32) - 1));
    if (wanted && at < room) entries[at] = Entry{value, token};
    many += __popc(lanes);
  }
};

// How far a warp has come in a row with T > 0. In powers of two, relative to `top`: what is compared is near zero.
struct Reach {
  float top;      // the largest logit so far
  float per_bit;  // log2(e) / T
  float best;     // at least so much the choice will have
  float tail;     // weights of what was not listed
  List list;
  int raised;     // calls of `raise`
};

// Takes the largest of some logits into account, and now and then what the other warps have seen.
__device__ __forceinline__ void raise(Shared* shared, Reach& reach, float z) {
  if (++reach.raised % 4 && !__ballot_sync(FULL_WARP, z > reach.top)) return;
  float top = fmaxf(reach.top, warp_max(z));
  if (threadIdx.x % 32 == 0) top = fmaxf(top, unordered(atomicMax(&shared->top, ordered(top))));
  top = __shfl_sync(FULL_WARP, top, 0);
  const float less = (reach.top - top) * reach.per_bit;
  reach.best += less;
  reach.tail *= exp2_about(less);
  reach.top = top;
}

// One token for a row with filters, `bits` away from the top: listed, or part of the tail.
__device__ __forceinline__ void take_score(Reach& reach, float bits, float least, float z, int token) {
  const bool near = bits > least;
  if (!near) reach.tail += exp2_about(bits);
  if (__ballot_sync(FULL_WARP, near)) reach.list.add(near, z, token);
}

// One token with its noise's bits: listed if it comes close to the best so far.
__device__ __forceinline__ void take_noise(Reach& reach, float z, int token, unsigned bits) {
  const float value = (z - reach.top) * reach.per_bit + gumbel(bits) * LOG2E;
  reach.best = fmaxf(reach.best, warp_max(value));
  reach.list.add(value >= reach.best - SLACK_BITS, z, token);
}

// Streams a row whose tokens all may win, making their noise.
__device__ __forceinline__ unsigned stream_noise(Shared* shared, const Part& part, const Record& record, Reach& reach) {
  const auto four = [&](unsigned pair, unsigned other, int token) {
    unsigned bits[4] = {(unsigned)token / 4, (unsigned)record.position, 0, 0};
    philox(bits, record.seed_low, record.seed_high);
    float z[4] = {low(pair), high(pair), low(other), high(other)};
    const float nearest = fmaxf(fmaxf(z[0], z[1]), fmaxf(z[2], z[3]));
    // -log(w) is no less than the noise that w makes, so w has to be below e^(score - best).
    const float w = (float)min(min(bits[0], bits[1]), min(bits[2], bits[3])) * 2.3283064365386963e-10f;
    const float needed = exp2_about((nearest - reach.top) * reach.per_bit - reach.best + SLACK_BITS);
    if (!__ballot_sync(FULL_WARP, w <= needed)) return;
#pragma unroll 1
    for (int j = 0; j < 4; ++j) {
      take_noise(reach, z[0], token + j, bits[0]);
      for (int i = 0; i < 3; ++i) {
        z[i] = z[i + 1];
        bits[i] = bits[i + 1];
      }
    }
  };
  const auto hopeful = [&](float z) {
    return __ballot_sync(FULL_WARP, (z - reach.top) * reach.per_bit + MOST_NOISE * LOG2E >= reach.best - SLACK_BITS) != 0;
  };
  const unsigned numbers = part.stream([&](const uint4& words, int token) {
    const float most = largest(words);
    raise(shared, reach, most);
    if (!hopeful(most)) return;
#pragma unroll 1
    for (int j = 0; j < 2; ++j) four(j ? words.z : words.x, j ? words.w : words.y, token + 4 * j);
  });
  const bool nan = part.each_edit([&](float z, int token) {
    raise(shared, reach, z);
    if (!hopeful(z)) return;
    unsigned bits[4] = {(unsigned)token / 4, (unsigned)record.position, 0, 0};
    philox(bits, record.seed_low, record.seed_high);
    take_noise(reach, z, token, token % 4 < 2 ? (token % 2 ? bits[1] : bits[0]) : (token % 2 ? bits[3] : bits[2]));
  });
  return nan ? NAN_PAIR : numbers;
}

// Streams a row with filters. `least` is where its list ends, in powers of two below the top.
__device__ __forceinline__ unsigned stream_scores(Shared* shared, const Part& part, Reach& reach, float least) {
  const unsigned numbers = part.stream([&](const uint4& words, int token) {
    const float most = largest(words);
    raise(shared, reach, most);
    const float nearest = (most - reach.top) * reach.per_bit;
    if (!__ballot_sync(FULL_WARP, nearest > -NO_MASS_BITS || nearest > least)) return;
    const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
    const bool none = !__ballot_sync(FULL_WARP, nearest > least);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float z = j % 2 ? high(pairs[j / 2]) : low(pairs[j / 2]);
      const float bits = (z - reach.top) * reach.per_bit;
      if (none)
        reach.tail += exp2_about(bits);
      else
        take_score(reach, bits, least, z, token + j);
    }
  });
  const bool nan = part.each_edit([&](float z, int token) {
    raise(shared, reach, z);
    take_score(reach, (z - reach.top) * reach.per_bit, least, z, token);
  });
  return nan ? NAN_PAIR : numbers;
}

// How far below the top a list ends at first, in powers of two: for top-p where about a tenth of what it leaves out lies
// beyond, for top-k fifteen logits down, where the k-th mostly is above. Nowhere without filters.
__device__ __forceinline__ float first_least(const Record& record, bool counts) {
  if (counts) return -LOG2E * fminf(15.f / record.temperature, NO_CHANCE);
  if (record.top_p < 1.f) return -LOG2E * (7.f - logf(1.f - record.top_p));
  return record.log_min_p * LOG2E * 1.00001f - 1e-3f;
}

// Now that the maximum is known: what is listed and still near gets its score, the rest joins the tail.
__device__ __forceinline__ void settle(Reach& reach, float maximum, float temperature, float least) {
  reach.tail *= exp2_about((reach.top - maximum) * reach.per_bit);
  reach.top = maximum;
  const int many = reach.list.many, lane = threadIdx.x % 32;
  reach.list.many = 0;
#pragma unroll 1
  for (int base = 0; base < many; base += 32) {
    Entry entry = {NEGATIVE_INFINITY, 0};
    if (base + lane < many) entry = reach.list.entries[base + lane];
    __syncwarp();  // before others write there
    const float bits = (entry.value - maximum) * reach.per_bit;
    const bool near = base + lane < many && bits > least;
    if (base + lane < many && !near) reach.tail += exp2_about(bits);
    reach.list.add(near, (entry.value - maximum) / temperature, entry.token);
  }
  __syncwarp();
}

