// Writes rows into KV slots, and moves a committed branch to where the log has it.
#include "device.cuh"

// Grid (rows, kv_heads), 32 threads. Keys and values come in any strides; rows without a slot (-1) are padding.
extern "C" __global__ void kv_store(
    const half_t* __restrict__ key, int key_row, int key_head,        // [rows, kv_heads, dim] by strides
    const half_t* __restrict__ value, int value_row, int value_head,  // likewise
    const int* __restrict__ slots, int kv_heads, int dim, int page_bits,
    half_t* __restrict__ keys, half_t* __restrict__ values) {  // [pages, kv_heads, page, dim]
  const int row = blockIdx.x, head = blockIdx.y, slot = slots[row];
  if (slot < 0) return;
  const size_t place = ((size_t)((slot >> page_bits) * kv_heads + head) << page_bits) + (slot & ((1 << page_bits) - 1));
  for (int d = threadIdx.x; d < dim; d += 32) {
    keys[place * dim + d] = key[(size_t)row * key_row + (size_t)head * key_head + d];
    values[place * dim + d] = value[(size_t)row * value_row + (size_t)head * value_head + d];
  }
}

// Copies tokens between slots in every layer. Grid (layers * 2 * kv_heads, groups), 32 threads. The moves of a group are
// done in order, each thread on columns of its own, so a slot may be left and taken in one group; groups do not overlap.
extern "C" __global__ void kv_move(
    const int* __restrict__ moves,   // [moves, 2] source, target
    const int* __restrict__ starts,  // [groups + 1]
    const int* __restrict__ groups,  // [1]
    int kv_heads, int dim, int page_bits, long long plane,  // elements of one layer's keys
    half_t* __restrict__ pool) {     // [layers, 2, pages, kv_heads, page, dim]
  if (blockIdx.y >= (unsigned)groups[0]) return;
  const int head = blockIdx.x % kv_heads, mask = (1 << page_bits) - 1;
  half_t* base = pool + (size_t)(blockIdx.x / kv_heads) * plane;
  for (int i = starts[blockIdx.y]; i < starts[blockIdx.y + 1]; ++i) {
    const int from = moves[2 * i], to = moves[2 * i + 1];
    const size_t source = ((size_t)((from >> page_bits) * kv_heads + head) << page_bits) + (from & mask);
    const size_t target = ((size_t)((to >> page_bits) * kv_heads + head) << page_bits) + (to & mask);
    for (int d = threadIdx.x; d < dim; d += 32) base[target * dim + d] = base[source * dim + d];
  }
}
