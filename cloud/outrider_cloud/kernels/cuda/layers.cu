// What lies between a layer's matrix products: norms with the residual, rotary embedding with the KV write, SiLU times up.
// Sums are taken in float32 and rounded where the Hugging Face modules round, so that both give the same to a rounding.
#include "device.cuh"

// residual += x (rounded), out = norm(residual) * weight. One block a row, threads a multiple of 32.
extern "C" __global__ void rms_norm(
    const half_t* __restrict__ x,     // [rows, width]
    half_t* __restrict__ residual,    // [rows, width]; null: norm x itself
    const half_t* __restrict__ weight,  // [width]
    int width, float epsilon,
    half_t* __restrict__ out) {  // [rows, width]
  __shared__ float scratch[33];
  const size_t base = (size_t)blockIdx.x * width;
  float squares = 0.f;
  for (int i = 2 * threadIdx.x; i < width; i += 2 * blockDim.x) {
    const unsigned bits = *reinterpret_cast<const unsigned*>(x + base + i);
    float low = to_float((half_t)bits), high = to_float((half_t)(bits >> 16));
    if (residual) {
      unsigned* place = reinterpret_cast<unsigned*>(residual + base + i);
      const unsigned sum = pack(to_float((half_t)*place) + low, to_float((half_t)(*place >> 16)) + high);
      *place = sum;
      low = to_float((half_t)sum);
      high = to_float((half_t)(sum >> 16));
    }
    squares = fmaf(low, low, fmaf(high, high, squares));
  }
  const float factor = rsqrtf(block_sum(squares, scratch) / (float)width + epsilon);
  const half_t* from = residual ? residual : x;
  for (int i = 2 * threadIdx.x; i < width; i += 2 * blockDim.x) {
    const unsigned bits = *reinterpret_cast<const unsigned*>(from + base + i);
    const unsigned w = *reinterpret_cast<const unsigned*>(weight + i);
    const float low = round_half(to_float((half_t)bits) * factor), high = round_half(to_float((half_t)(bits >> 16)) * factor);
    *reinterpret_cast<unsigned*>(out + base + i) = pack(to_float((half_t)w) * low, to_float((half_t)(w >> 16)) * high);
  }
}

// out = silu(gate) * up of [rows, 2 * width], gate first. Two values a thread.
extern "C" __global__ void silu_mul(const half_t* __restrict__ gate_up, int rows, int width, half_t* __restrict__ out) {
  const size_t index = 2 * ((size_t)blockIdx.x * blockDim.x + threadIdx.x), row = index / width, column = index % width;
  if (row >= (size_t)rows) return;
  const unsigned gate = *reinterpret_cast<const unsigned*>(gate_up + row * 2 * width + column);
  const unsigned up = *reinterpret_cast<const unsigned*>(gate_up + row * 2 * width + width + column);
  const float g0 = to_float((half_t)gate), g1 = to_float((half_t)(gate >> 16));
  const float low = round_half(g0 / (1.f + expf(-g0))), high = round_half(g1 / (1.f + expf(-g1)));
  *reinterpret_cast<unsigned*>(out + index) = pack(low * to_float((half_t)up), high * to_float((half_t)(up >> 16)));
}

// Splits a row's fused projection, norms the heads of queries and keys if asked, rotates them, and writes keys and values
// into their slots. Grid (rows, q_heads + 2 * kv_heads), 32 threads; dynamic shared memory [dim] floats.
extern "C" __global__ void rope_store(
    const half_t* __restrict__ qkv,      // [rows, (q_heads + 2 * kv_heads) * dim]
    const float* __restrict__ cosines, const float* __restrict__ sines, int rotary,  // [rows, rotary]
    const half_t* __restrict__ q_norm, const half_t* __restrict__ k_norm, float epsilon,  // [dim] or null
    const int* __restrict__ slots,       // [rows], -1 for padding
    int q_heads, int kv_heads, int dim, int page_bits,
    half_t* __restrict__ query,          // [rows, q_heads, dim]
    half_t* __restrict__ keys, half_t* __restrict__ values) {  // [pages, kv_heads, page, dim]
  DYNAMIC_SHARED(float, head_values);
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x;
  const half_t* from = qkv + ((size_t)row * (q_heads + 2 * kv_heads) + head) * dim;
  const int kind = head < q_heads ? 0 : head < q_heads + kv_heads ? 1 : 2;
  half_t* to;
  if (kind == 0) {
    to = query + ((size_t)row * q_heads + head) * dim;
  } else {
    const int slot = slots[row], kv_head = (head - q_heads) % kv_heads;
    if (slot < 0) return;
    const size_t place = ((size_t)((slot >> page_bits) * kv_heads + kv_head) << page_bits) + (slot & ((1 << page_bits) - 1));
    to = (kind == 1 ? keys : values) + place * dim;
  }
  if (kind == 2) {
    for (int d = lane; d < dim; d += 32) to[d] = from[d];
    return;
  }
  const half_t* norm = kind == 0 ? q_norm : k_norm;
  float squares = 0.f;
  for (int d = lane; d < dim; d += 32) {
    const float value = to_float(from[d]);
    head_values[d] = value;
    squares = fmaf(value, value, squares);
  }
  if (norm) {
    const float factor = rsqrtf(warp_sum(squares) / (float)dim + epsilon);
    for (int d = lane; d < dim; d += 32)
      head_values[d] = round_half(to_float(norm[d]) * round_half(head_values[d] * factor));
  }
  __syncwarp();
  const float* cosine = cosines + (size_t)row * rotary;
  const float* sine = sines + (size_t)row * rotary;
  for (int d = lane; d < dim; d += 32) {
    float value = head_values[d];
    if (d < rotary) {
      const float other = d < rotary / 2 ? -head_values[d + rotary / 2] : head_values[d - rotary / 2];
      value = fmaf(value, cosine[d], other * sine[d]);
    }
    to[d] = to_half(value);
  }
}
