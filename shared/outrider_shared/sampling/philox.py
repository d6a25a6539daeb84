"""Philox4x32-10 in numpy: the random bits of the sampling rule.

The generator is that of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11); its known-answer vectors
(Random123, `kat_vectors`) are in the tests. A counter-based generator gives the bits of any (seed, position, token)
directly, in any order, on any machine: that is what makes a session repeatable wherever it is resumed. The noise that
is made of them is in `outrider_shared.sampling.noise`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = np.array([0x9E3779B9, 0xBB67AE85], np.uint64)
_MASK = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32 with 10 rounds.

    Args:
        counter: [n, 4] uint32.
        key: Two 32-bit words.

    Returns:
        [n, 4] uint32 of random bits.
    """
    return _generate(counter[:, 0], counter[:, 1], counter[:, 2:].T, np.array(key, np.uint64)[:, None])


def random_bits(
    seed: int | NDArray[np.uint64], position: int | NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.uint32]:
    """X of the sampling rule for chosen token ids: Philox(key=seed, counter=(v // 4, position, 0, 0))[v % 4].

    Args:
        seed: 64-bit key of the session, or [n], one for each token.
        position: Index in the log of the token to be chosen, or [n].
        tokens: [n] token ids.

    Returns:
        [n] uint32.
    """
    key = _words(np.broadcast_to(np.asarray(seed, np.uint64), tokens.shape))
    words = _generate(tokens >> 2, np.asarray(position), 0, key)
    bits: NDArray[np.uint32] = words[np.arange(len(tokens)), tokens & 3]
    return bits


def bit_rows(seeds: Sequence[int], positions: Sequence[int], first: int, groups: int) -> NDArray[np.uint32]:
    """X of the sampling rule for a run of token ids at several positions.

    Args:
        seeds: Per row.
        positions: Per row.
        first: The first token id is 4 times this.
        groups: Groups of four token ids.

    Returns:
        [rows, 4 * groups] uint32.
    """
    key = _words(np.array(seeds, np.uint64)[:, None])
    words = _generate(np.arange(first, first + groups), np.array(positions)[:, None], 0, key)
    return words.reshape(len(seeds), 4 * groups)


def split_seed(seed: int) -> tuple[int, int]:
    """The low and the high word of a 64-bit seed, as Philox's key."""
    return seed & 0xFFFFFFFF, seed >> 32


def derived_seed(seed: int, index: int) -> int:
    """The seed of the index-th alternative answer to one request.

    It is `seed` itself for 0, else x0 + 2^32 x1 with x = Philox4x32-10(key=seed, counter=(index, 0, 0, 1)); noise has 0
    as the counter's last word.
    """
    if index == 0:
        return seed
    low, high, _, _ = philox4x32(np.array([[index, 0, 0, 1]], np.uint32), split_seed(seed))[0].tolist()
    return int(low | high << 32)


def _words(seeds: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """[2, ...]: the low and the high words."""
    return np.stack((seeds & _MASK, seeds >> _HALF))


def _generate(
    c0: NDArray[Any], c1: NDArray[Any], rest: NDArray[Any] | int, key: NDArray[np.uint64]
) -> NDArray[np.uint32]:
    """The rounds, over every counter at once.

    Words are held in 64 bits, the two that are multiplied together in one array and the other two in another, so that
    a round is five calls on whole arrays.

    Args:
        c0: The counters' first words, of any shape that broadcasts against the others'.
        c1: The second words.
        rest: [2, ...], the third and the fourth words, or 0.
        key: [2, ...].

    Returns:
        [..., 4] of the common shape.
    """
    shape = np.broadcast_shapes(c0.shape, c1.shape, key.shape[1:])
    even, odd, product = (np.empty((2, *shape), np.uint64) for _ in range(3))
    even[0], odd[0] = c0, c1
    even[1], odd[1] = (rest, rest) if isinstance(rest, int) else rest
    swapped = product[::-1]
    per_word = (2, *[1] * len(shape))
    multipliers, weyl = _MULTIPLIERS.reshape(per_word), _WEYL.reshape(per_word)
    for _ in range(_ROUNDS):
        np.multiply(even, multipliers, out=product)
        np.bitwise_xor(odd, key, out=odd)
        np.right_shift(swapped, _HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_and(swapped, _MASK, out=odd)
        key = (key + weyl) & _MASK
    out = np.empty((*shape, 4), np.uint32)
    out[..., 0::2], out[..., 1::2] = np.moveaxis(even, 0, -1), np.moveaxis(odd, 0, -1)
    return out
