"""Philox4x32-10 and the Gumbel noise made from it, in numpy.

The generator is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11); its known-answer vectors
(Random123, `kat_vectors`) are in the tests. A counter-based generator gives the noise of any (seed, position, token)
directly, in any order, on any machine: that is what makes a session repeatable wherever it is resumed.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIER_0, _MULTIPLIER_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_LOW, _HIGH = (0, 1) if np.little_endian else (1, 0)
_BELOW_ONE = np.float32(1.0 - 2.0**-24)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32 with 10 rounds.

    Args:
        counter: [n, 4] uint32.
        key: Two 32-bit words.

    Returns:
        [n, 4] uint32 of random bits.
    """
    c0, c1, c2, c3 = (np.ascontiguousarray(counter[:, i]) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0 = np.multiply(c0, _MULTIPLIER_0, dtype=np.uint64).view(np.uint32)
        p1 = np.multiply(c2, _MULTIPLIER_1, dtype=np.uint64).view(np.uint32)
        c0, c1, c2, c3 = (
            p1[_HIGH::2] ^ c1 ^ np.uint32(k0),
            p1[_LOW::2],
            p0[_HIGH::2] ^ c3 ^ np.uint32(k1),
            p0[_LOW::2],
        )
        k0, k1 = (k0 + _WEYL_0) & _MASK, (k1 + _WEYL_1) & _MASK
    return np.stack((c0, c1, c2, c3), axis=1)


def random_bits(seed: int, position: int, tokens: NDArray[np.int64]) -> NDArray[np.uint32]:
    """X of the sampling rule for chosen token ids: Philox(key=seed, counter=(v // 4, position, 0, 0))[v % 4].

    Args:
        seed: 64-bit key of the session.
        position: Index in the log of the token to be chosen.
        tokens: [n] token ids.

    Returns:
        [n] uint32.
    """
    counter = np.zeros((len(tokens), 4), np.uint32)
    counter[:, 0] = tokens >> 2
    counter[:, 1] = position
    bits: NDArray[np.uint32] = philox4x32(counter, split_seed(seed))[np.arange(len(tokens)), tokens & 3]
    return bits


def split_seed(seed: int) -> tuple[int, int]:
    """The low and the high word of a 64-bit seed, as Philox's key."""
    return seed & _MASK, seed >> 32


def derived_seed(seed: int, index: int) -> int:
    """The seed of the index-th alternative answer to one request.

    It is `seed` itself for 0, else x0 + 2^32 x1 with x = Philox4x32-10(key=seed, counter=(index, 0, 0, 1)); noise has 0
    as the counter's last word.
    """
    if index == 0:
        return seed
    low, high, _, _ = philox4x32(np.array([[index, 0, 0, 1]], np.uint32), split_seed(seed))[0].tolist()
    return int(low | high << 32)


def gumbel_from_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Standard Gumbel noise from 32 random bits: -log(E), E = -log1p(-w), w = (float32(x) + 0.5) * 2^-32, below 1.

    The winners of an argmax come from w near 0, where float32 is fine; the usual -log(-log(u)) takes them from u near
    1, where it is coarse and distorts the tail of a large vocabulary.
    """
    w = (bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    np.minimum(w, _BELOW_ONE, out=w)
    noise: NDArray[np.float32] = -np.log(-np.log1p(-w))
    return noise


def gumbel_row(seed: int, position: int, vocabulary: int) -> NDArray[np.float32]:
    """The noise of a whole position: [vocabulary] float32, g(seed, position, v) for every token id v."""
    counter = np.zeros((-(-vocabulary // 4), 4), np.uint32)
    counter[:, 0] = np.arange(len(counter), dtype=np.uint32)
    counter[:, 1] = position
    return gumbel_from_bits(philox4x32(counter, split_seed(seed)).reshape(-1)[:vocabulary])


@lru_cache(maxsize=512)
def cached_gumbel_row(seed: int, position: int, vocabulary: int) -> NDArray[np.float32]:
    """`gumbel_row`, kept: the rows of one depth share it, and so does the next step when a draft was refused."""
    row = gumbel_row(seed, position, vocabulary)
    row.setflags(write=False)
    return row
