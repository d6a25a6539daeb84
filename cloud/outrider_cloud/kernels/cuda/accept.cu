// The accept walk: follow the target's own choices through each session's tree as far as it was drafted.
#include "device.cuh"

// One warp a session. Rows of a session are its root, then its nodes, parents before children.
extern "C" __global__ void accept_walk(
    const int* __restrict__ starts,   // [sessions + 1] first sampled row of each session
    const int* __restrict__ sessions, // [1]
    const int* __restrict__ tokens,   // [rows] drafted token; of a root any
    const int* __restrict__ parents,  // [rows] parent's row within the session, 0 is the root; of a root -1
    const int* __restrict__ chosen,   // [rows] the target's choice after each row
    int width,
    int* __restrict__ path,     // [sessions, width] row within the session that chose each committed token
    int* __restrict__ lengths,  // [sessions] tokens committed
    int* __restrict__ refused) {  // [sessions] 1 if drafts hung below the last of those rows
  const int session = blockIdx.x, lane = threadIdx.x;
  if (session >= sessions[0]) return;
  const int base = starts[session], rows = starts[session + 1] - base;
  int here = 0, length = 0, below = 0;
  for (;;) {
    if (lane == 0 && length < width) path[(size_t)session * width + length] = here;
    ++length;
    const int choice = chosen[base + here];
    int next = -1;
    below = 0;
    for (int start = here + 1; start < rows && next < 0; start += 32) {
      const int row = start + lane;
      const bool child = row < rows && parents[base + row] == here;
      const unsigned children = __ballot_sync(FULL_WARP, child);
      const unsigned match = __ballot_sync(FULL_WARP, child && tokens[base + row] == choice);
      below |= children != 0;
      if (match) next = start + __ffs((int)match) - 1;
    }
    if (next < 0 || length >= width) break;
    here = next;
  }
  if (lane == 0) {
    lengths[session] = length;
    refused[session] = below;
  }
}
