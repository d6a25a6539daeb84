// Runs the kernels' CUDA text on the CPU: a fiber for each thread, the blocks of a cluster together, clusters in order.
//
// Covered: thread and block indices, static and dynamic shared memory (it starts poisoned), __syncthreads, __syncwarp,
// shuffles, votes, atomics, clusters with peer memory, the tensor-core product, 16-bit floats.
// Found out, and told by the launch: a barrier that part of a block has left, lanes of a warp that wait at different
// places, a shuffle without its own lane; with races.h accesses that no barrier orders. Not covered: occupancy, time, and
// of a weak memory order what goes beyond that.
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
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("outrider_shared")))
#define __align__(n) alignas(n)
#define CLUSTER(n)
// What is not a kernel's own text: its accesses are nobody's races.
#define SHIM __attribute__((no_sanitize("thread")))

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
struct alignas(8) uint2 {
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
enum class Access { Read, Write, Atomic };

struct Fiber {
  void* stack_pointer = nullptr;
  std::unique_ptr<char[]> stack{new char[kStack]};
  State state = State::Ready;
  unsigned thread = 0, block = 0;
  unsigned warp_syncs = 0, block_syncs = 0, cluster_syncs = 0;  // passed so far
  bool started = false;  // it is in the kernel's text
};

struct Exchange {
  unsigned char data[2][32][kExchange];  // two turns: a fast lane may be one operation ahead of a slow one
  unsigned turn[32];
};

inline std::vector<Fiber> fibers;
inline std::vector<Exchange> exchanges;
inline std::vector<std::vector<unsigned char>> shared;
// Where each begins, and the exchanges: for threads, which are not to be seen within a vector's own text.
constexpr unsigned kMostBlocks = 16;
inline unsigned char* shared_start[kMostBlocks];
inline size_t shared_size = 0;
inline Exchange* exchange_start = nullptr;
inline void* scheduler = nullptr;
inline Fiber* current = nullptr;
inline bool inside = false;  // a thread runs, not what schedules it
inline unsigned threads = 0, first_block = 0;
inline std::function<void()> body;
inline std::string failure;  // the first one of a launch
extern "C" unsigned char __start_outrider_shared[] __attribute__((weak, visibility("hidden")));
extern "C" unsigned char __stop_outrider_shared[] __attribute__((weak, visibility("hidden")));

SHIM inline void report(const char* what) {
  if (!failure.empty()) return;
  const bool thread = inside;
  inside = false;  // what follows is no kernel's
  char text[256];
  std::snprintf(text, sizeof text, "%s (block %u,%u,%u thread %u)", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  failure = text;
  inside = thread;
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

SHIM inline void wait(State state) {
  current->state = state;
  outrider_switch(&current->stack_pointer, scheduler);
}

// Of a thread: the launch ends here.
[[noreturn]] SHIM inline void die(const char* what) {
  report(what);
  for (;;) wait(State::Done);
}

SHIM inline void entry() {
  body();
  wait(State::Done);
  die("a finished thread was woken");
}

SHIM inline void prepare(Fiber& fiber, unsigned block, unsigned thread) {
  fiber.state = State::Ready;
  fiber.block = block;
  fiber.thread = thread;
  fiber.started = false;
  fiber.warp_syncs = fiber.block_syncs = fiber.cluster_syncs = 0;
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

SHIM inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = {fiber.thread, 0, 0};
  blockIdx.x = first_block + fiber.block;
  inside = true;
  outrider_switch(&scheduler, fiber.stack_pointer);
  inside = false;
}

// Lets the lanes of a warp go on that wait for each other; false if none does.
SHIM inline bool release_warp(unsigned first, unsigned count) {
  bool waits = false, elsewhere = false;
  for (unsigned i = first; i < first + count; ++i) {
    waits |= fibers[i].state == State::AtWarp;
    elsewhere |= fibers[i].state != State::AtWarp && fibers[i].state != State::Done;
  }
  if (waits && elsewhere) report("lanes of one warp wait at different places");
  if (!waits || elsewhere) return false;
  for (unsigned i = first; i < first + count; ++i)
    if (fibers[i].state == State::AtWarp) fibers[i].state = State::Ready;
  return true;
}

#ifndef OUTRIDER_RACES
inline void note(const void*, size_t, Access) {}
inline void start_launch(unsigned, const uintptr_t*, size_t) {}
inline void start_cluster(unsigned) {}
inline void run_ready(unsigned total) {  // warp by warp, in order
  for (unsigned b = 0; b < total; b += threads)
    for (unsigned t = 0; t < threads; t += 32) {
      const unsigned first = b + t, count = std::min(32u, threads - t);
      do
        for (unsigned i = first; i < first + count; ++i)
          if (fibers[i].state == State::Ready) resume(fibers[i]);
      while (failure.empty() && release_warp(first, count));
    }
}
inline unsigned place_of(unsigned index, unsigned) { return index; }
#else
void note(const void* at, size_t bytes, Access access);
void start_launch(unsigned seed, const uintptr_t* given, size_t count);
void start_cluster(unsigned blocks);
void run_ready(unsigned total);
unsigned place_of(unsigned index, unsigned count);
#endif

// Lets those go on that wait at a barrier of `count` fibers which all have reached; an exited one is an error.
SHIM inline bool release(unsigned first, unsigned count, State barrier) {
  unsigned at = 0, done = 0;
  for (unsigned i = first; i < first + count; ++i) {
    at += fibers[i].state == barrier;
    done += fibers[i].state == State::Done;
  }
  if (at && at + done == count && done) report("a barrier that some threads have left behind");
  if (at != count) return false;
  for (unsigned i = first; i < first + count; ++i) fibers[i].state = State::Ready;
  return true;
}

SHIM inline void run_cluster(unsigned blocks) {
  const unsigned total = blocks * threads;
  for (unsigned b = 0; b < blocks; ++b)
    for (unsigned t = 0; t < threads; ++t) prepare(fibers[b * threads + t], b, t);
  while (failure.empty()) {
    run_ready(total);
    bool moved = false, alive = false;
    for (unsigned b = 0; b < blocks; ++b) moved |= release(b * threads, threads, State::AtBlock);
    moved |= release(0, total, State::AtCluster);
    for (unsigned i = 0; i < total; ++i) alive |= fibers[i].state != State::Done;
    if (!alive) return;
    if (!moved) report("deadlock: threads wait at different barriers");
  }
}

// `arguments` as for cuLaunchKernel: one pointer to the value of each parameter; `given` are first and last address of
// each of the `count` tensors among them. Returns what went wrong, or null.
template <class... A, size_t... I>
SHIM const char* launch(void (*kernel)(A...), const unsigned* shape, unsigned cluster, size_t shared_bytes, void** arguments,
                        unsigned seed, const uintptr_t* given, size_t count, std::index_sequence<I...>) {
  gridDim = {shape[0], shape[1], shape[2]};
  blockDim = {shape[3], 1, 1};
  threads = shape[3];
  body = [=]() SHIM {
    current->started = true;
    kernel(*reinterpret_cast<std::remove_reference_t<A>*>(arguments[I])...);
  };
  if (fibers.size() < cluster * threads) fibers.resize(cluster * threads);
  exchanges.assign(cluster * ((threads + 31) / 32), Exchange{});  // a launch that failed left turns apart
  exchange_start = exchanges.data();
  shared_size = shared_bytes;
  shared.resize(cluster);
  failure.clear();
  start_launch(seed, given, count);
  const unsigned clusters = gridDim.x / cluster, all = clusters * gridDim.y * gridDim.z;
  for (unsigned index = 0; index < all && failure.empty(); ++index) {
    const unsigned place = place_of(index, all);
    for (unsigned b = 0; b < cluster; ++b) {
      shared[b].assign(shared_bytes + 16, kPoison);
      const auto end = reinterpret_cast<uintptr_t>(shared[b].data() + 15);
      shared_start[b] = reinterpret_cast<unsigned char*>(end & ~uintptr_t(15));
    }
    std::memset(__start_outrider_shared, kPoison, __stop_outrider_shared - __start_outrider_shared);
    first_block = place % clusters * cluster;
    blockIdx = {first_block, place / clusters % gridDim.y, place / clusters / gridDim.y};
    start_cluster(cluster);
    run_cluster(cluster);
  }
  return failure.empty() ? nullptr : failure.c_str();
}

template <class... A>
SHIM const char* launch_any(void (*kernel)(A...), const unsigned* shape, unsigned cluster, size_t shared_bytes,
                            void** arguments, unsigned seed, const uintptr_t* given, size_t count) {
  return launch(kernel, shape, cluster, shared_bytes, arguments, seed, given, count, std::index_sequence_for<A...>{});
}

SHIM inline unsigned char* shared_of(unsigned block) { return shared_start[block]; }
SHIM inline unsigned char* own_shared() { return shared_of(current->block); }

}  // namespace host

#define EXPORT_KERNEL(kernel, cluster)                                                                              \
  extern "C" const char* run_##kernel(const unsigned* shape, size_t shared_bytes, void** arguments, unsigned seed,  \
                                      const uintptr_t* given, size_t count) {                                       \
    return host::launch_any(kernel, shape, cluster, shared_bytes, arguments, seed, given, count);                   \
  }
