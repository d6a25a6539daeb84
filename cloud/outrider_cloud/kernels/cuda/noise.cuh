// The noise of outrider_shared.sampling.philox.
#define MOST_NOISE 22.9f      // -log(-log1p(-2^-33)) is 22.87
#define LEAST_NOISE -2.82f    // and -log(-log1p(-(1 - 2^-24))) is -2.81

__device__ __forceinline__ void philox(unsigned (&c)[4], unsigned k0, unsigned k1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned high0 = __umulhi(0xD2511F53u, c[0]), low0 = 0xD2511F53u * c[0];
    const unsigned high1 = __umulhi(0xCD9E8D57u, c[2]), low1 = 0xCD9E8D57u * c[2];
    c[0] = high1 ^ c[1] ^ k0;
    c[1] = low1;
    c[2] = high0 ^ c[3] ^ k1;
    c[3] = low0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
}

__device__ __forceinline__ float gumbel(unsigned bits) {
  const float w = fminf(((float)bits + 0.5f) * 2.3283064365386963e-10f, 0.99999994039535522f);
  return -logf(-log1pf(-w));
}

__device__ __forceinline__ float noise_of(const Record& record, int token) {
  unsigned bits[4] = {(unsigned)token / 4, (unsigned)record.position, 0, 0};
  philox(bits, record.seed_low, record.seed_high);
  return gumbel(token % 4 < 2 ? (token % 2 ? bits[1] : bits[0]) : (token % 2 ? bits[3] : bits[2]));
}
