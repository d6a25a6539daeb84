// Runs the kernels' CUDA text on the CPU: a fiber for each thread, the blocks of a cluster together, clusters in order.
//
// Covered: thread and block indices, static and dynamic shared memory (dynamic starts poisoned), __syncthreads,
// __syncwarp, shuffles, votes, atomics, clusters with peer memory, the tensor-core product, 16-bit floats.
// Found out and fatal: a barrier that part of a block has left, lanes of a warp that wait at different places, a shuffle
// without its own lane. Not covered: races between blocks, weak memory order, occupancy, time.
//
// Compile with -ffp-contract=off: products are fused where the text says fmaf, nowhere else.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static
#define __align__(n) alignas(n)
#define CLUSTER(n)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace host {

constexpr size_t kStack = 64 << 10, kExchange = 32;
constexpr unsigned char kPoison = 0xCD;

enum class State { Ready, AtBlock, AtCluster, AtWarp, Done };

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::Ready;
  unsigned thread = 0, block = 0;
};

struct Exchange {
  unsigned char data[2][32][kExchange];  // two turns: a fast lane may be one operation ahead of a slow one
  unsigned turn[32];
};

inline std::vector<Fiber> fibers;
inline std::vector<Exchange> exchanges;
inline std::vector<std::vector<unsigned char>> shared;
inline std::vector<int> votes;
inline void* scheduler = nullptr;
inline Fiber* current = nullptr;
inline unsigned threads = 0, first_block = 0;
inline std::function<void()> body;

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "kernel on the host: %s (block %u,%u,%u thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z,
               threadIdx.x);
  std::abort();
}

#if defined(__x86_64__)
// Saves what a call preserves, and goes on with another stack: no system call, unlike swapcontext.
extern "C" void outrider_switch(void** save, void* load);
asm(R"(
.text
outrider_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#elif defined(__aarch64__)
extern "C" void outrider_switch(void** save, void* load);
asm(R"(
.text
outrider_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
#else
#error "the host build of the kernels knows x86-64 and arm64"
#endif

inline void wait(State state) {
  current->state = state;
  outrider_switch(&current->stack_pointer, scheduler);
}

inline void entry() {
  body();
  wait(State::Done);
  die("a finished thread was woken");
}

inline void prepare(Fiber& fiber, unsigned block, unsigned thread) {
  fiber.state = State::Ready;
  fiber.block = block;
  fiber.thread = thread;
  auto top = reinterpret_cast<uintptr_t>(fiber.stack.get() + kStack) & ~uintptr_t(15);
  auto* slots = reinterpret_cast<void**>(top);
#if defined(__x86_64__)
  slots[-1] = nullptr;  // where a return address would lie
  slots[-2] = reinterpret_cast<void*>(entry);
  for (int i = 3; i <= 8; ++i) slots[-i] = nullptr;
  fiber.stack_pointer = slots - 8;
#else
  for (int i = 1; i <= 20; ++i) slots[-i] = nullptr;
  slots[-20 + 11] = reinterpret_cast<void*>(entry);
  fiber.stack_pointer = slots - 20;
#endif
}

inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = {fiber.thread, 0, 0};
  blockIdx.x = first_block + fiber.block;
  outrider_switch(&scheduler, fiber.stack_pointer);
}

inline void run_warp(unsigned first, unsigned count) {
  for (;;) {
    bool waits = false, elsewhere = false;
    for (unsigned i = first; i < first + count; ++i)
      if (fibers[i].state == State::Ready) resume(fibers[i]);
    for (unsigned i = first; i < first + count; ++i) {
      waits |= fibers[i].state == State::AtWarp;
      elsewhere |= fibers[i].state != State::AtWarp && fibers[i].state != State::Done;
    }
    if (!waits) return;
    if (elsewhere) die("lanes of one warp wait at different places");
    for (unsigned i = first; i < first + count; ++i)
      if (fibers[i].state == State::AtWarp) fibers[i].state = State::Ready;
  }
}

// Lets those go on that wait at a barrier of `count` fibers which all have reached; an exited one is an error.
inline bool release(unsigned first, unsigned count, State barrier) {
  unsigned at = 0, done = 0;
  for (unsigned i = first; i < first + count; ++i) {
    at += fibers[i].state == barrier;
    done += fibers[i].state == State::Done;
  }
  if (at && at + done == count && done) die("a barrier that some threads have left behind");
  if (at != count) return false;
  for (unsigned i = first; i < first + count; ++i) fibers[i].state = State::Ready;
  return true;
}

inline void run_cluster(unsigned blocks) {
  const unsigned total = blocks * threads;
  for (unsigned b = 0; b < blocks; ++b)
    for (unsigned t = 0; t < threads; ++t) prepare(fibers[b * threads + t], b, t);
  for (;;) {
    for (unsigned b = 0; b < blocks; ++b)
      for (unsigned t = 0; t < threads; t += 32) run_warp(b * threads + t, std::min(32u, threads - t));
    bool moved = false, alive = false;
    for (unsigned b = 0; b < blocks; ++b) moved |= release(b * threads, threads, State::AtBlock);
    moved |= release(0, total, State::AtCluster);
    for (unsigned i = 0; i < total; ++i) alive |= fibers[i].state != State::Done;
    if (!alive) return;
    if (!moved) die("deadlock: threads wait at different barriers");
  }
}

// `arguments` as for cuLaunchKernel: one pointer to the value of each parameter.
template <class... A, size_t... I>
void launch(void (*kernel)(A...), const unsigned* shape, unsigned cluster, size_t shared_bytes, void** arguments,
            std::index_sequence<I...>) {
  gridDim = {shape[0], shape[1], shape[2]};
  blockDim = {shape[3], 1, 1};
  threads = shape[3];
  body = [=] { kernel(*reinterpret_cast<std::remove_reference_t<A>*>(arguments[I])...); };
  if (fibers.size() < cluster * threads) fibers.resize(cluster * threads);
  exchanges.resize(cluster * ((threads + 31) / 32));
  shared.resize(cluster);
  votes.assign(cluster, 0);
  for (unsigned z = 0; z < gridDim.z; ++z)
    for (unsigned y = 0; y < gridDim.y; ++y)
      for (unsigned x = 0; x < gridDim.x; x += cluster) {
        for (auto& memory : shared) memory.assign(shared_bytes + 16, kPoison);
        first_block = x;
        blockIdx = {x, y, z};
        run_cluster(cluster);
      }
}

inline unsigned lane() { return current->thread % 32; }
inline Exchange& exchange() { return exchanges[current->block * ((threads + 31) / 32) + current->thread / 32]; }

// Gives `value` to the warp; afterwards peer(lane) reads what the others gave.
template <class T>
const Exchange* give(const T& value, unsigned& turn) {
  static_assert(sizeof(T) <= kExchange);
  Exchange& own = exchange();
  turn = own.turn[lane()]++ & 1;
  std::memcpy(own.data[turn][lane()], &value, sizeof value);
  wait(State::AtWarp);
  return &own;
}
template <class T>
T taken(const Exchange* from, unsigned turn, unsigned lane) {
  T value;
  std::memcpy(&value, from->data[turn][lane], sizeof value);
  return value;
}

inline unsigned char* shared_of(unsigned block) {
  auto address = reinterpret_cast<uintptr_t>(shared[block].data());
  return reinterpret_cast<unsigned char*>((address + 15) & ~uintptr_t(15));
}

}  // namespace host

#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(host::shared_of(host::current->block))
#define EXPORT_KERNEL(kernel, cluster)                                                                      \
  extern "C" void run_##kernel(const unsigned* shape, size_t shared_bytes, void** arguments) {              \
    host::launch_any(kernel, shape, cluster, shared_bytes, arguments);                                      \
  }
namespace host {
template <class... A>
void launch_any(void (*kernel)(A...), const unsigned* shape, unsigned cluster, size_t shared_bytes, void** arguments) {
  launch(kernel, shape, cluster, shared_bytes, arguments, std::index_sequence_for<A...>{});
}
}  // namespace host

inline void __syncthreads() { host::wait(host::State::AtBlock); }
inline void __syncwarp(unsigned = ~0u) { host::wait(host::State::AtWarp); }
inline void cluster_sync() { host::wait(host::State::AtCluster); }
template <class T>
T* cluster_peer(T* here, unsigned rank) {
  auto offset = reinterpret_cast<unsigned char*>(here) - host::shared_of(host::current->block);
  return reinterpret_cast<T*>(host::shared_of(rank) + offset);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
  if (!(mask >> host::lane() & 1)) host::die("a shuffle without its own lane");
  unsigned turn;
  const auto* from = host::give(value, turn);
  return host::taken<T>(from, turn, (unsigned)source & 31);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
  return __shfl_sync(mask, value, (int)host::lane() ^ flip);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by) {
  unsigned source = host::lane() + by;
  return __shfl_sync(mask, value, source < 32 ? (int)source : (int)host::lane());
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by) {
  unsigned here = host::lane();
  return __shfl_sync(mask, value, here >= by ? (int)(here - by) : (int)here);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  unsigned turn, bits = 0;
  const auto* from = host::give(predicate, turn);
  for (unsigned i = 0; i < 32; ++i)
    if (mask >> i & 1 && host::taken<int>(from, turn, i)) bits |= 1u << i;
  return bits;
}

template <class T>
T atomicAdd(T* place, T value) {
  T old = *place;
  *place = old + value;
  return old;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz((unsigned)bits) : 32; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline float __int_as_float(int bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline float __uint_as_float(unsigned bits) { return __int_as_float((int)bits); }
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

inline void mma(float (&d)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
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
