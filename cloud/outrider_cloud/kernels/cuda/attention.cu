// Paged tree attention with split KV on tensor cores. A row's bits depend on its logical position only: not on its batch,
// its place in it, the number of drafts, the shape of the tree, or the slots.
//
//   * Split s holds positions [s * SPLIT, (s + 1) * SPLIT) of the log; each of its SPLIT / 32 warps holds 32 of them.
//   * Up to 16 query rows (draft rows times the heads of a KV group) share one pass over the keys. Where rows of a tree
//     see different tokens at one position, each row takes a pass of its own over its own path. So every product adds
//     the same keys in the same place of the same instruction, as decoding that path token by token would.
//   * Keys and values go from memory straight into fragments, 16 bytes a lane: a sum over head dimensions or over keys
//     may be taken in any fixed order, so the order is the one in which the bytes lie.
//
// Shapes: keys and values [pages, kv_heads, page, HEAD_DIM]. A row with `fork` sees positions below it through its tile's
// table of pages (also those of its own segment that lie in log order) and the others through its ancestor list.
#include "device.cuh"

#define WARPS (SPLIT / 32)
#define GROUP (HEAD_DIM % 64 == 0 ? 8 : 4)  // values of one key that a lane loads at a time
#define OUT_DIM (HEAD_DIM > 128 ? 128 : HEAD_DIM)  // values that one item of work makes: what fits into registers
#define TILES (OUT_DIM / 8)                 // output fragments
#define PITCH (OUT_DIM + 4)
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define KEYS_AHEAD 2  // pieces of 32 values of the keys that are under way at once: with more, registers spill there
#else
#define KEYS_AHEAD 4
#endif

template <int N>
struct Vector;
template <>
struct Vector<8> {
  uint4 bits;
  __device__ __forceinline__ unsigned get(int i) const {
    const unsigned word = i < 4 ? (i < 2 ? bits.x : bits.y) : (i < 6 ? bits.z : bits.w);
    return i & 1 ? word >> 16 : word & 0xffffu;
  }
};
template <>
struct Vector<4> {
  uint2 bits;
  __device__ __forceinline__ unsigned get(int i) const {
    const unsigned word = i < 2 ? bits.x : bits.y;
    return i & 1 ? word >> 16 : word & 0xffffu;
  }
};

struct Row {  // one query row of a lane
  int position, lowest, member;  // member: place of its draft row within the pass, -1 for none
};

__device__ __forceinline__ float score(float product, float scale, float softcap) {
  product *= scale;
  return softcap > 0.f ? softcap * tanhf(product / softcap) : product;
}

extern "C" __global__ void __launch_bounds__(SPLIT, 1) attention_split(
    const half_t* __restrict__ query, int row_stride, int head_stride,  // [rows, q_heads, HEAD_DIM] by strides
    const half_t* __restrict__ keys, const half_t* __restrict__ values, int page_bits,
    const int* __restrict__ positions,   // [rows]
    const int* __restrict__ forks,       // [rows] first position that is not in the table
    const int* __restrict__ ancestors, int ancestor_width,  // [rows, width] slots of positions fork, fork + 1, ...
    const int* __restrict__ tiles,       // [tiles, 3] first row, rows, start of its pages in `table`
    const int* __restrict__ table,       // pages
    const int* __restrict__ work,        // [items, 2] tile, split
    const int* __restrict__ work_count,  // [1]
    const int* __restrict__ parts,       // [rows] first entry of the row's results
    int q_heads, int kv_heads, int window, float scale, float softcap,
    float* __restrict__ part_values,     // [entries, q_heads, HEAD_DIM]
    float* __restrict__ part_sums) {     // [entries, q_heads, 2] maximum, sum
  DYNAMIC_SHARED(float, sums);           // [16][PITCH], then [WARPS][16] maxima and [WARPS][16] sums
  float* warp_max = sums + 16 * PITCH;
  float* warp_sum_of = warp_max + WARPS * 16;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane >> 2, t = lane & 3;
  const int share = q_heads / kv_heads, subgroups = (share + 15) / 16, page_mask = (1 << page_bits) - 1;
  const int per_item = kv_heads * subgroups * (HEAD_DIM / OUT_DIM), total = work_count[0] * per_item;

  for (int index = blockIdx.x; index < total; index += gridDim.x) {
    const int item = index / per_item, kv_head = index % per_item / subgroups % kv_heads, subgroup = index % subgroups;
    const int first_out = index % per_item / (kv_heads * subgroups) * OUT_DIM;
    const int* tile = tiles + 3 * work[2 * item];
    const int split = work[2 * item + 1], heads = min(16, share - 16 * subgroup), per_pass = 16 / heads;
    const int first_head = kv_head * share + 16 * subgroup, first_key = split * SPLIT + warp * 32;
    const int* pages = table + tile[2];

    for (int start = 0; start < tile[1]; start += per_pass) {
      const int first_row = tile[0] + start, count = min(per_pass, tile[1] - start);
      Row mine[2];
      const half_t* rows[2];
      int last = -1, lowest = 0x7fffffff, fork = 0x7fffffff;
      for (int half = 0; half < 2; ++half) {
        const int place = g + 8 * half, member = place / heads;
        const bool valid = member < count && place < per_pass * heads;
        const int row = first_row + (valid ? member : 0), position = positions[row];
        mine[half].member = valid ? member : -1;
        mine[half].position = position;
        mine[half].lowest = window > 0 ? max(0, position - window + 1) : 0;
        rows[half] = query + (size_t)row * row_stride + (size_t)(first_head + (valid ? place % heads : 0)) * head_stride;
        last = max(last, position);
        lowest = min(lowest, mine[half].lowest);
        if (forks[row] <= position) fork = min(fork, forks[row]);
      }
      for (int step = 4; step < 32; step <<= 1) {
        last = max(last, __shfl_xor_sync(FULL_WARP, last, step));
        lowest = min(lowest, __shfl_xor_sync(FULL_WARP, lowest, step));
        fork = min(fork, __shfl_xor_sync(FULL_WARP, fork, step));
      }

      float out[TILES][4], top[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY}, sum[2] = {0.f, 0.f};
#pragma unroll
      for (int n = 0; n < TILES; ++n) out[n][0] = out[n][1] = out[n][2] = out[n][3] = 0.f;
      const bool seen = first_key <= last && first_key + 31 >= lowest, apart = first_key + 32 > fork;
      const int passes = !seen ? 0 : apart ? count : 1;

      for (int pass = 0; pass < passes; ++pass) {
        // The slot of position first_key + lane, clamped to a visible one: a hidden key weighs nothing, but must be a number.
        unsigned key;
        {
          const int row = first_row + (apart ? pass : 0), highest = apart ? positions[row] : last;
          const int position = min(first_key + lane, highest), own_fork = apart ? forks[row] : 0x7fffffff;
          int page, offset;
          if (position < own_fork) {
            page = pages[position >> page_bits];
            offset = position & page_mask;
          } else {
            const int slot = ancestors[(size_t)row * ancestor_width + (position - own_fork)];
            page = slot >> page_bits;
            offset = slot & page_mask;
          }
          key = ((unsigned)(page * kv_heads + kv_head) << page_bits) + offset;
        }

        float s[4][4];
#pragma unroll
        for (int n = 0; n < 4; ++n) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0.f;
        size_t key_at[4];
#pragma unroll
        for (int n = 0; n < 4; ++n) key_at[n] = (size_t)__shfl_sync(FULL_WARP, key, 8 * n + g) * HEAD_DIM + 8 * t;
#pragma unroll KEYS_AHEAD
        for (int c = 0; c < HEAD_DIM; c += 32) {
          const uint4 none = {0, 0, 0, 0};
          const uint4 a = mine[0].member >= 0 ? *reinterpret_cast<const uint4*>(rows[0] + c + 8 * t) : none;
          const uint4 b = mine[1].member >= 0 ? *reinterpret_cast<const uint4*>(rows[1] + c + 8 * t) : none;
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            const uint4 k = *reinterpret_cast<const uint4*>(keys + key_at[n] + c);
            mma(s[n], a.x, b.x, a.y, b.y, k.x, k.y);
            mma(s[n], a.z, b.z, a.w, b.w, k.z, k.w);
          }
        }

        float high[2] = {NEGATIVE_INFINITY, NEGATIVE_INFINITY};
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const Row& row = mine[e / 2];
            const int position = first_key + 8 * n + 2 * t + e % 2;
            const bool visible = row.member >= 0 && (!apart || row.member == pass) && position <= row.position &&
                                 position >= row.lowest;
            s[n][e] = visible ? score(s[n][e], scale, softcap) : NEGATIVE_INFINITY;
            high[e / 2] = fmaxf(high[e / 2], s[n][e]);
          }
        for (int half = 0; half < 2; ++half) {
          high[half] = fmaxf(high[half], __shfl_xor_sync(FULL_WARP, high[half], 1));
          high[half] = fmaxf(high[half], __shfl_xor_sync(FULL_WARP, high[half], 2));
          if (high[half] > NEGATIVE_INFINITY) top[half] = high[half];  // a row is visible in one pass only
        }
        float part[2] = {0.f, 0.f};
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            s[n][e] = s[n][e] > NEGATIVE_INFINITY ? expf(s[n][e] - high[e / 2]) : 0.f;
            part[e / 2] += s[n][e];
          }
        for (int half = 0; half < 2; ++half) {
          part[half] += __shfl_xor_sync(FULL_WARP, part[half], 1);
          part[half] += __shfl_xor_sync(FULL_WARP, part[half], 2);
          sum[half] += part[half];
        }

#pragma unroll
        for (int n = 0; n < 4; n += 2) {  // 16 keys
          const unsigned a0 = pack(s[n][0], s[n][1]), a1 = pack(s[n][2], s[n][3]);
          const unsigned a2 = pack(s[n + 1][0], s[n + 1][1]), a3 = pack(s[n + 1][2], s[n + 1][3]);
          const half_t* from[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const unsigned at = __shfl_sync(FULL_WARP, key, 8 * n + 2 * t + i % 2 + i / 2 * 8);
            from[i] = values + (size_t)at * HEAD_DIM + first_out + GROUP * g;
          }
#pragma unroll
          for (int d = 0; d < OUT_DIM / (8 * GROUP); ++d) {
            Vector<GROUP> v[4];
#pragma unroll
            for (int i = 0; i < 4; ++i) v[i] = *reinterpret_cast<const Vector<GROUP>*>(from[i] + 8 * GROUP * d);
#pragma unroll
            for (int e = 0; e < GROUP; ++e)
              mma(out[d * GROUP + e], a0, a1, a2, a3, v[0].get(e) | v[1].get(e) << 16, v[2].get(e) | v[3].get(e) << 16);
          }
        }
      }

      // The warps of a split are added in their order.
      if (t == 0)
        for (int half = 0; half < 2; ++half) {
          warp_max[warp * 16 + g + 8 * half] = top[half];
          warp_sum_of[warp * 16 + g + 8 * half] = sum[half];
        }
      for (int i = threadIdx.x; i < 16 * PITCH; i += SPLIT) sums[i] = 0.f;
      __syncthreads();
      float weight[2];
      for (int half = 0; half < 2; ++half) {
        float most = NEGATIVE_INFINITY;
        for (int w = 0; w < WARPS; ++w) most = fmaxf(most, warp_max[w * 16 + g + 8 * half]);
        weight[half] = top[half] > NEGATIVE_INFINITY ? expf(top[half] - most) : 0.f;
      }
      for (int w = 0; w < WARPS; ++w) {
        if (warp == w && passes > 0)
#pragma unroll
          for (int n = 0; n < TILES; ++n)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
              const int d = n / GROUP * 8 * GROUP + (2 * t + e % 2) * GROUP + n % GROUP;
              float* place = sums + (g + 8 * (e / 2)) * PITCH + d;
              *place = fmaf(weight[e / 2], out[n][e], *place);
            }
        __syncthreads();
      }
      for (int i = threadIdx.x; i < 16 * OUT_DIM; i += SPLIT) {
        const int place = i / OUT_DIM, d = i % OUT_DIM, member = place / heads;
        if (member >= count || place >= per_pass * heads) continue;
        float most = NEGATIVE_INFINITY;
        for (int w = 0; w < WARPS; ++w) most = fmaxf(most, warp_max[w * 16 + place]);
        if (most == NEGATIVE_INFINITY) continue;  // this split is behind the row, or out of its window
        const int row = first_row + member;
        const int first_split = (window > 0 ? max(0, positions[row] - window + 1) : 0) / SPLIT;
        const size_t entry = (size_t)(parts[row] + split - first_split) * q_heads + first_head + place % heads;
        part_values[entry * HEAD_DIM + first_out + d] = sums[place * PITCH + d];
        if (first_out + d == 0) {
          float all = 0.f;
          for (int w = 0; w < WARPS; ++w) {
            const float m = warp_max[w * 16 + place];
            if (m > NEGATIVE_INFINITY) all = fmaf(expf(m - most), warp_sum_of[w * 16 + place], all);
          }
          part_sums[2 * entry] = most;
          part_sums[2 * entry + 1] = all;
        }
      }
      __syncthreads();
    }
  }
}

// Adds a row's splits in their order. Grid (rows, q_heads), HEAD_DIM threads.
extern "C" __global__ void attention_combine(
    const int* __restrict__ positions, const int* __restrict__ parts,  // [rows], -1 for padding
    const float* __restrict__ part_values, const float* __restrict__ part_sums,
    const half_t* __restrict__ sinks,  // [q_heads] or null
    int q_heads, int window,
    half_t* __restrict__ out) {  // [rows, q_heads, HEAD_DIM]
  const int row = blockIdx.x, head = blockIdx.y, d = threadIdx.x;
  half_t* place = out + ((size_t)row * q_heads + head) * HEAD_DIM + d;
  if (parts[row] < 0) {
    *place = 0;
    return;
  }
  const int position = positions[row], first = (window > 0 ? max(0, position - window + 1) : 0) / SPLIT;
  const int splits = position / SPLIT - first + 1;
  const size_t base = (size_t)parts[row] * q_heads + head;
  float most = sinks ? to_float(sinks[head]) : NEGATIVE_INFINITY;
  const float sink = most;
  for (int s = 0; s < splits; ++s) most = fmaxf(most, part_sums[2 * (base + (size_t)s * q_heads)]);
  float sum = 0.f, value = 0.f;
  for (int s = 0; s < splits; ++s) {
    const size_t entry = base + (size_t)s * q_heads;
    const float weight = expf(part_sums[2 * entry] - most);
    sum = fmaf(weight, part_sums[2 * entry + 1], sum);
    value = fmaf(weight, part_values[entry * HEAD_DIM + d], value);
  }
  if (sinks) sum += expf(sink - most);
  *place = to_half(value / sum);
}
