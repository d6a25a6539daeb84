// What every kernel stands on: 16-bit floats as bit patterns, warp and cluster primitives, one tensor-core product.
//
// No header of CUDA or torch is included, so NVRTC alone compiles it. With OUTRIDER_HOST the same text is C++ for the
// host (host.h), where a fiber stands for a thread; everything that is PTX has its host meaning there.
//
// OUTRIDER_FP16 chooses float16; otherwise the 16-bit type is bfloat16.

typedef unsigned short half_t;  // 16 bits of a float16 or bfloat16

#ifdef OUTRIDER_FP16
#define INFINITE_PAIR 0xfc00fc00u  // two that are minus infinity, and two that are no number
#define NAN_PAIR 0x7e007e00u
#define PAIR "f16x2"
#else
#define INFINITE_PAIR 0xff80ff80u
#define NAN_PAIR 0x7fc07fc0u
#define PAIR "bf16x2"
#endif

#define FULL_WARP 0xffffffffu
#define NEGATIVE_INFINITY __int_as_float((int)0xff800000u)

#ifndef OUTRIDER_HOST
#define DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char raw_##name[]; \
  type* name = reinterpret_cast<type*>(raw_##name)
#define CLUSTER(n) __cluster_dims__(n, 1, 1)

// Not `.aligned`: a branch of single threads may lie just before it, and who knows whether the warp has met again.
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release;\n\tbarrier.cluster.wait.acquire;" ::: "memory");
}

// The same shared-memory variable in the block of another rank of the cluster.
template <class T>
__device__ __forceinline__ T* cluster_peer(T* here, unsigned rank) {
  unsigned long long there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(here), "r"(rank));
  return reinterpret_cast<T*>(there);
}

__device__ __forceinline__ float to_float(half_t bits) {
#ifdef OUTRIDER_FP16
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
#else
  return __uint_as_float((unsigned)bits << 16);
#endif
}

// Two floats rounded to nearest even, `low` in the low 16 bits.
__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned bits;
#ifdef OUTRIDER_FP16
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#else
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
#endif
  return bits;
}

// blockIdx.x, asked for again: what hangs on it may be computed anew instead of being kept.
__device__ __forceinline__ unsigned block_again() {
  unsigned block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}

// The larger of each half of two pairs: what is no number counts for nothing, or for all.
__device__ __forceinline__ unsigned max_pair(unsigned a, unsigned b) {
  unsigned most;
  asm("max." PAIR " %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}
__device__ __forceinline__ unsigned max_or_nan(unsigned a, unsigned b) {
  unsigned most;
  asm("max.NaN." PAIR " %0, %1, %2;" : "=r"(most) : "r"(a), "r"(b));
  return most;
}

// 2^value to about 22 bits.
__device__ __forceinline__ float exp2_about(float value) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value));
  return power;
}

// d[16x8] += a[16x16] b[16x8]; fragments as in PTX's mma.m16n8k16 (lane = 4 * row + column pair).
__device__ __forceinline__ void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
#ifdef OUTRIDER_FP16
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
#endif  // OUTRIDER_HOST

__device__ __forceinline__ half_t to_half(float value) { return (half_t)(pack(value, 0.f) & 0xffffu); }
__device__ __forceinline__ float round_half(float value) { return to_float(to_half(value)); }

__device__ __forceinline__ float warp_sum(float value) {
  for (int step = 16; step; step >>= 1) value += __shfl_xor_sync(FULL_WARP, value, step);
  return value;
}

// Sum over a block of whole warps, at most 1024 threads; every thread gets it. `scratch` holds 33 floats.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (warp == 0) {
    value = warp_sum(lane < warps ? scratch[lane] : 0.f);
    if (lane == 0) scratch[32] = value;
  }
  __syncthreads();
  return scratch[32];
}
