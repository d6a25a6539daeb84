// Beside host.h: threads of a cluster run interleaved in a random order, and every access of a kernel is looked at.
//
// The compiler is asked to tell of accesses as for ThreadSanitizer (g++ -fsanitize=thread); what it calls is here in the
// place of that library. Two accesses to one place, by two threads and not both reads or both atomic, are a race unless a
// barrier that both threads pass lies between them: of the block, of the cluster, or __syncwarp for lanes of one warp.
// Of shared memory all are held to that, whatever order they happened in; of other memory each access is held to the last
// write, so there one of two orders shows it. Clusters run one after the other, in a random order. Errors are, as on a
// card, an access whose address is not a multiple of its size, and one to memory that is none of the kernel's tensors.
#pragma once
#include <unordered_map>

namespace host {

struct Mark {  // an access; thread 0 is none
  unsigned thread = 0, block = 0, warp = 0, warp_syncs = 0, block_syncs = 0, cluster_syncs = 0, cluster = 0;
  bool atomic = false;
};
struct Cell {  // of shared memory: the last write, and two reads by different threads
  Mark write, reads[2];
};
constexpr size_t kCell = 4;        // bytes
constexpr unsigned kPreempted = 8;  // one access in so many

inline std::vector<std::vector<Cell>> shadows;  // of each block's dynamic shared memory
inline std::vector<Cell> static_shadow;
inline std::unordered_map<uintptr_t, Mark> written;  // other memory, by two bytes
inline std::vector<uintptr_t> tensors;  // first and last address of each
inline std::vector<unsigned> order, ended;  // of clusters; threads of each block
inline unsigned cluster_number = 0, random_state = 1;
inline bool busy = false;  // within the detector

SHIM inline unsigned random_below(unsigned bound) {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 17;
  random_state ^= random_state << 5;
  return random_state % bound;
}

extern "C" unsigned char __ehdr_start[] __attribute__((visibility("hidden")));  // of this module: its constants
extern "C" unsigned char _end[] __attribute__((visibility("hidden")));

SHIM inline bool is_given(uintptr_t at, size_t bytes) {
  for (size_t i = 0; i < tensors.size(); i += 2)
    if (at >= tensors[i] && at + bytes - 1 <= tensors[i + 1]) return true;
  for (const dim3* place : {&threadIdx, &blockIdx, &blockDim, &gridDim})
    if (at - reinterpret_cast<uintptr_t>(place) < sizeof(dim3)) return true;
  return at >= reinterpret_cast<uintptr_t>(__ehdr_start) && at < reinterpret_cast<uintptr_t>(_end);
}

SHIM inline void start_launch(unsigned seed, const uintptr_t* given, size_t count) {
  tensors.assign(given, given + 2 * count);
  random_state = seed * 2654435761u + 1;
  if (random_state == 0) random_state = 1;
  written.clear();
  order.clear();
  cluster_number = 0;
}

SHIM inline unsigned place_of(unsigned index, unsigned count) {
  if (order.empty()) {
    for (unsigned i = 0; i < count; ++i) order.push_back(i);
    for (unsigned i = count; i > 1; --i) std::swap(order[i - 1], order[random_below(i)]);
  }
  return order[index];
}

SHIM inline void start_cluster(unsigned blocks) {
  ++cluster_number;
  ended.assign(blocks, 0);
  shadows.resize(blocks);
  for (unsigned b = 0; b < blocks; ++b) shadows[b].assign(shared[b].size() / kCell + 1, Cell{});
  static_shadow.assign((__stop_outrider_shared - __start_outrider_shared) / kCell + 1, Cell{});
}

SHIM inline void run_ready(unsigned total) {
  std::vector<unsigned> ready;
  for (bool released = true; released && failure.empty();) {
    for (unsigned i = 0; i < total; ++i)
      if (fibers[i].state == State::Ready) ready.push_back(i);
    while (!ready.empty() && failure.empty()) {
      unsigned& chosen = ready[random_below(ready.size())];
      resume(fibers[chosen]);
      if (fibers[chosen].state != State::Ready) {
        ended[fibers[chosen].block] += fibers[chosen].state == State::Done;
        chosen = ready.back();
        ready.pop_back();
      }
    }
    released = false;
    for (unsigned b = 0; b < total; b += threads)
      for (unsigned t = 0; t < threads; t += 32) released |= release_warp(b + t, std::min(32u, threads - t));
  }
}

SHIM inline bool ordered(const Mark& before, const Mark& now) {
  if (before.thread == 0 || before.thread == now.thread) return true;
  if (before.cluster != now.cluster) return false;
  if (before.cluster_syncs != now.cluster_syncs) return true;
  if (before.block != now.block) return false;
  return before.block_syncs != now.block_syncs || (before.warp == now.warp && before.warp_syncs != now.warp_syncs);
}

SHIM inline bool races(const Mark& before, const Mark& now) {
  return !(before.atomic && now.atomic) && !ordered(before, now);
}

// What is wrong with an access to a cell, or null.
SHIM inline const char* look(Cell& cell, const Mark& now, Access access) {
  if (races(cell.write, now)) return "an access to shared memory that no barrier separates from another thread's write";
  if (access == Access::Read) {
    if (cell.reads[0].thread != now.thread) cell.reads[1] = cell.reads[0];
    cell.reads[0] = now;
    return nullptr;
  }
  for (const Mark& read : cell.reads)
    if (races(read, now)) return "a write to shared memory that no barrier separates from another thread's access";
  cell.write = now;
  return nullptr;
}

SHIM inline const char* look_at(uintptr_t at, size_t bytes, const Mark& now, Access access) {
  const auto statics = reinterpret_cast<uintptr_t>(__start_outrider_shared);
  size_t offset = at - statics;
  std::vector<Cell>* cells = at < reinterpret_cast<uintptr_t>(__stop_outrider_shared) && at >= statics ? &static_shadow : nullptr;
  for (size_t b = 0; b < shadows.size() && cells == nullptr; ++b) {
    offset = at - reinterpret_cast<uintptr_t>(shared_of(b));
    if (offset >= shared_size) continue;
    if (ended[b] == threads) return "an access to the shared memory of a block that has ended";
    cells = &shadows[b];
  }
  const char* wrong = nullptr;
  if (cells != nullptr) {
    for (size_t i = offset / kCell; i <= (offset + bytes - 1) / kCell && wrong == nullptr; ++i)
      wrong = look((*cells)[i], now, access);
    return wrong;
  }
  if (!is_given(at, bytes)) return "an access to memory that is none of the kernel's tensors";
  for (uintptr_t half = at / 2; half <= (at + bytes - 1) / 2; ++half) {
    auto found = written.find(half);
    if (found != written.end() && races(found->second, now))
      wrong = "an access to memory that no barrier separates from another thread's write";
    if (access != Access::Read) written[half] = now;
  }
  return wrong;
}

SHIM inline void note(const void* address, size_t bytes, Access access) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  if (!inside || busy || !current->started) return;
  busy = true;  // what follows is instrumented in part
  const char* wrong = nullptr;
  if (at - reinterpret_cast<uintptr_t>(current->stack.get()) >= kStack) {
    const unsigned number = current->block * threads + current->thread;
    const Mark now{number + 1, current->block, current->thread / 32, current->warp_syncs, current->block_syncs,
                   current->cluster_syncs, cluster_number, access == Access::Atomic};
    wrong = look_at(at, bytes, now, access);
  }
  busy = false;
  if (wrong != nullptr) die(wrong);
  if (random_below(kPreempted) == 0) wait(State::Ready);
}

SHIM inline void note_aligned(const void* address, size_t bytes, Access access) {
  if (inside && !busy && current->started && reinterpret_cast<uintptr_t>(address) % bytes) die("an access that is not aligned");
  note(address, bytes, access);
}

}  // namespace host

#define TOLD(bytes)                                                                                                    \
  extern "C" SHIM void __tsan_read##bytes(void* at) { host::note_aligned(at, bytes, host::Access::Read); }             \
  extern "C" SHIM void __tsan_write##bytes(void* at) { host::note_aligned(at, bytes, host::Access::Write); }           \
  extern "C" SHIM void __tsan_unaligned_read##bytes(void* at) { host::note(at, bytes, host::Access::Read); }           \
  extern "C" SHIM void __tsan_unaligned_write##bytes(void* at) { host::note(at, bytes, host::Access::Write); }
TOLD(1) TOLD(2) TOLD(4) TOLD(8) TOLD(16)
extern "C" SHIM void __tsan_read_range(void* at, size_t bytes) { host::note(at, bytes, host::Access::Read); }
extern "C" SHIM void __tsan_write_range(void* at, size_t bytes) { host::note(at, bytes, host::Access::Write); }
extern "C" SHIM void __tsan_vptr_update(void**, void*) {}
extern "C" SHIM void __tsan_init() {}
extern "C" SHIM void __tsan_func_entry(void*) {}
extern "C" SHIM void __tsan_func_exit() {}
