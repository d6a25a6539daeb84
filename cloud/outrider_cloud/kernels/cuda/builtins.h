// What CUDA has built in, for the host: barriers, shuffles, votes, atomics, and the primitives of device.cuh that are PTX.
#pragma once

namespace host {

SHIM inline unsigned lane() { return current->thread % 32; }
SHIM inline Exchange& exchange() { return exchange_start[current->block * ((threads + 31) / 32) + current->thread / 32]; }

// Gives `value` to the warp; afterwards peer(lane) reads what the others gave.
template <class T>
SHIM const Exchange* give(const T& value, unsigned& turn) {
  static_assert(sizeof(T) <= kExchange);
  Exchange& own = exchange();
  turn = own.turn[lane()]++ & 1;
  std::memcpy(own.data[turn][lane()], &value, sizeof value);
  wait(State::AtWarp);
  return &own;
}
template <class T>
SHIM T taken(const Exchange* from, unsigned turn, unsigned lane) {
  T value;
  std::memcpy(&value, from->data[turn][lane], sizeof value);
  return value;
}

}  // namespace host

#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host::own_shared())

SHIM inline unsigned block_again() { return blockIdx.x; }
SHIM inline void __syncthreads() {
  host::wait(host::State::AtBlock);
  ++host::current->block_syncs;
}
SHIM inline void __syncwarp(unsigned = ~0u) {  // shuffles, votes and products order no memory
  host::wait(host::State::AtWarp);
  ++host::current->warp_syncs;
}
SHIM inline void cluster_sync() {
  host::wait(host::State::AtCluster);
  ++host::current->cluster_syncs;
}
template <class T>
SHIM T* cluster_peer(T* here, unsigned rank) {
  auto offset = reinterpret_cast<unsigned char*>(here) - host::shared_of(host::current->block);
  return reinterpret_cast<T*>(host::shared_of(rank) + offset);
}

template <class T>
SHIM T __shfl_sync(unsigned mask, T value, int source) {
  if (!(mask >> host::lane() & 1)) host::die("a shuffle without its own lane");
  unsigned turn;
  const auto* from = host::give(value, turn);
  return host::taken<T>(from, turn, (unsigned)source & 31);
}
template <class T>
SHIM T __shfl_xor_sync(unsigned mask, T value, int flip) {
  return __shfl_sync(mask, value, (int)host::lane() ^ flip);
}
template <class T>
SHIM T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  unsigned source = host::lane() + by;
  return __shfl_sync(mask, value, source < 32 ? (int)source : (int)host::lane());
}
template <class T>
SHIM T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  unsigned here = host::lane();
  return __shfl_sync(mask, value, here >= by ? (int)(here - by) : (int)here);
}
SHIM inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned turn, bits = 0;
  const auto* from = host::give(predicate, turn);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && host::taken<int>(from, turn, i)) bits |= 1u << i;
  return bits;
}

template <class T>
SHIM T atomicAdd(T* place, T value) {
  host::note(place, sizeof *place, host::Access::Atomic);
  T old = *place;
  *place = old + value;
  return old;
}
template <class T>
SHIM T atomicMax(T* place, T value) {
  host::note(place, sizeof *place, host::Access::Atomic);
  T old = *place;
  *place = old < value ? value : old;
  return old;
}
SHIM inline unsigned atomicOr(unsigned* place, unsigned value) {
  host::note(place, sizeof *place, host::Access::Atomic);
  unsigned old = *place;
  *place = old | value;
  return old;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float((int)bits); }
inline int __float_as_int(float value) {
  int bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
inline unsigned long long __double2ull_rn(double value) { return (unsigned long long)std::nearbyint(value); }
using std::max;
using std::min;

inline float to_float(unsigned short bits) {
#ifdef OUTRIDER_FP16
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return (float)value;
#else
  return __uint_as_float((unsigned)bits << 16);
#endif
}
inline unsigned half_bits(float value) {
#ifdef OUTRIDER_FP16
  _Float16 rounded = (_Float16)value;
  unsigned short bits;
  std::memcpy(&bits, &rounded, 2);
  return bits;
#else
  unsigned bits = __float_as_uint(value);
  if (value != value) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
#endif
}
inline unsigned pack(float low, float high) { return half_bits(low) | half_bits(high) << 16; }

inline unsigned max_half(unsigned a, unsigned b, bool nan) {
  const float x = to_float((unsigned short)a), y = to_float((unsigned short)b);
  if (x != x || y != y) return nan ? half_bits(std::nanf("")) : x != x ? b : a;
  return x < y ? b : a;
}
inline unsigned max_pair(unsigned a, unsigned b) {
  return max_half(a & 0xffff, b & 0xffff, false) | max_half(a >> 16, b >> 16, false) << 16;
}
inline unsigned max_or_nan(unsigned a, unsigned b) {
  return max_half(a & 0xffff, b & 0xffff, true) | max_half(a >> 16, b >> 16, true) << 16;
}
inline float exp2_about(float value) { return std::exp2(value); }

SHIM inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  struct Fragment {
    unsigned a[4], b[2];
  };
  unsigned turn, row = host::lane() / 4, pair = host::lane() % 4;
  const auto* from = host::give(Fragment{{a0, a1, a2, a3}, {b0, b1}}, turn);
  for (int part = 0; part < 4; ++part) {
    const unsigned high_row = part / 2, column = 2 * pair + part % 2;
    for (unsigned k = 0; k < 16; k += 2) {
      const unsigned upper = k / 8, at = k % 8 / 2;
      const unsigned a = host::taken<Fragment>(from, turn, 4 * row + at).a[high_row + 2 * upper];
      const unsigned b = host::taken<Fragment>(from, turn, 4 * column + at).b[upper];
      d[part] = fmaf(to_float((unsigned short)a), to_float((unsigned short)b), d[part]);
      d[part] = fmaf(to_float((unsigned short)(a >> 16)), to_float((unsigned short)(b >> 16)), d[part]);
    }
  }
}
