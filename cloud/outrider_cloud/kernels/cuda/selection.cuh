// Where top-k and top-p cut, among scores that lie anywhere.
#define TAIL_ERROR 1e-4       // of the sum of the others' weights, much more than rounding makes
#define MASS_UNIT 35184372088832.0  // 2^45

__device__ __forceinline__ bool counts_tokens(const Record& record, int vocabulary) {
  return record.top_k > 0 && record.top_k < vocabulary;
}

// The limit of top-k and of top-p, a key: radix selection of where the running count reaches top_k, then of where the running
// mass of what is left reaches top_p of the whole, from the largest score down; each(f) calls f with the scores. `Shared::others`
// is about the mass of those it leaves out; false if more or less of it would lead to another limit. With WHOLE there are
// none, and the scores are those of all blocks of the cluster; else those that this block calls. `chances`: what is left
// out could not win, so that fewer than top_k are all that count; each of them weighs less than 1e-11.
template <bool WHOLE, class Each>
__device__ __forceinline__ bool select(Shared* shared, const Each& each, const Record& record, bool top_k, bool chances,
                                       unsigned& limit) {
  limit = 0x7f800000u;
#pragma unroll 1
  for (bool counts = top_k; counts || record.top_p < 1.f; counts = false) {
    unsigned prefix = 0;
    unsigned long long before = 0;
#pragma unroll 1
    for (int shift = 23, bits = 8; bits > 0; bits = min(8, shift), shift -= bits) {
      const bool all_bits = shift == 23;
      for (int i = threadIdx.x; i < BINS; i += THREADS) shared->bins[i] = 0;
      __syncthreads();
      each([&](float score) {
        const unsigned key = key_of(score);
        if (key > limit || (!all_bits && key >> (shift + bits) != prefix)) return;
        const unsigned bin = key >> shift & ((1u << bits) - 1);
        if (counts)
          add_shared(&shared->bins[bin], 1);
        else if (score > -32.f)
          add_shared(&shared->bins[bin], __double2ull_rn(exp((double)score) * MASS_UNIT));
      });
      const unsigned long long* totals = shared->bins;
      if (WHOLE) {
        totals = shared->totals;
        cluster_sync();
        for (int i = threadIdx.x; i < BINS; i += THREADS) {
          unsigned long long all = 0;
#pragma unroll 1
          for (unsigned rank = 0; rank < RANKS; ++rank) all += *cluster_peer(&shared->bins[i], rank);
          shared->totals[i] = all;
        }
        cluster_sync();
      } else {
        __syncthreads();
      }
      if (threadIdx.x < 32) {  // each lane owns a run of bins
        const int lane = threadIdx.x, run = BINS / 32;
        unsigned long long own = 0;
#pragma unroll 2
        for (int i = 0; i < run; ++i) own += totals[lane * run + i];
        unsigned long long through = own;
        for (int step = 1; step < 32; step <<= 1) {
          const unsigned long long lower = __shfl_up_sync(FULL_WARP, through, step);
          if (lane >= step) through += lower;
        }
        double least = (double)record.top_k, most = least;
        if (!counts) {
          const unsigned long long all = all_bits ? __shfl_sync(FULL_WARP, through, 31) : shared->whole;
          if (all_bits && lane == 0) shared->whole = all;
          const double others = WHOLE || top_k ? 0. : shared->others;
          const double doubt = WHOLE ? 0. : others * TAIL_ERROR + MASS_UNIT * (top_k ? 1e-8 + 1e-11 * record.top_k : 1e-8);
          least = (double)record.top_p * ((double)all + others - doubt);
          most = (double)record.top_p * ((double)all + others + doubt);
        }
        const unsigned reached = __ballot_sync(FULL_WARP, own > 0 && (double)(before + through) >= least);
        const unsigned filled = __ballot_sync(FULL_WARP, own > 0);
        const int owner = reached ? __ffs((int)reached) - 1 : 31 - __clz((int)filled);
        if (lane == owner) {
          unsigned long long running = before + through - own, last_before = running;
          int last = lane * run;
#pragma unroll 1
          for (int bin = last; bin < (lane + 1) * run; ++bin) {
            if (totals[bin] == 0) continue;
            last = bin;
            last_before = running;
            running += totals[bin];
            if ((double)running >= least) break;
          }
          shared->bin = last;
          shared->before = last_before;
          shared->sure = WHOLE || (double)running >= most;
        }
        if (filled == 0 && lane == 0) shared->sure = WHOLE;
      }
      __syncthreads();
      prefix = prefix << bits | (unsigned)shared->bin;
      before = shared->before;  // not written again before the next level's barriers
      if (!shared->sure) break;
    }
    if (shared->sure)
      limit = min(limit, prefix);
    else if (!counts || !chances)
      return false;
    if (record.top_p >= 1.f || !counts) break;
  }
  return true;
}
