"""Philox4x32-10 and the Gumbel noise in torch: the reference of the GPU kernels, on any device.

Bits equal those of `outrider_shared.sampling.philox`; logarithms are torch's and may differ in the last place.
"""

from __future__ import annotations

import torch

from outrider_shared.sampling.philox import split_seed

_ROUNDS = 10
_MASK = 0xFFFFFFFF


def philox4x32(counter: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Philox4x32 with 10 rounds; int64 tensors hold the 32-bit words.

    Args:
        counter: [..., 4] int64, each word in [0, 2^32).
        key: [..., 2] int64, broadcast against the counter.

    Returns:
        [..., 4] int64, each word in [0, 2^32).
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(_ROUNDS):
        # Products wrap around 2^64; the mask after the arithmetic shift restores the unsigned high word.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = ((p1 >> 32) & _MASK) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) & _MASK) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return torch.stack((c0, c1, c2, c3), -1)


def gumbel_rows(
    seeds: list[int], positions: list[int], vocabulary: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Noise of several positions: [rows, vocabulary] float32, g(seeds[r], positions[r], v)."""
    groups = -(-vocabulary // 4)
    counter = torch.zeros(len(seeds), groups, 4, dtype=torch.int64, device=device)
    counter[:, :, 0] = torch.arange(groups, device=device)
    counter[:, :, 1] = torch.tensor(positions, device=device)[:, None]
    key = torch.tensor([split_seed(seed) for seed in seeds], device=device)[:, None]
    bits = philox4x32(counter, key).reshape(len(seeds), -1)[:, :vocabulary]
    w = ((bits.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return -torch.log(-torch.log1p(-w))
