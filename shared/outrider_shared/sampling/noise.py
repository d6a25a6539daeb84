"""Gumbel noise of the sampling rule, in numpy: drawn for several positions at once, and remembered.

The noise is a pure function of seed, position and token, so what is drawn together, ahead or for some tokens only has
the bits that it has alone. A row of a small vocabulary costs more in calls than in arithmetic: whoever asks for few
rows is given those of the positions that come next, too.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from outrider_shared.sampling.philox import bit_rows, random_bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_BELOW_ONE = np.float32(1.0 - 2.0**-24)
_AT_ONCE = 32768
_AHEAD = 8
_KEPT_ROWS = 512
_KEPT_BYTES = 64 << 20


def gumbel_from_bits(bits: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Standard Gumbel noise from 32 random bits: -log(E), E = -log1p(-w), w = (float32(x) + 0.5) * 2^-32, below 1.

    The winners of an argmax come from w near 0, where float32 is fine; the usual -log(-log(u)) takes them from u near
    1, where it is coarse and distorts the tail of a large vocabulary.
    """
    noise = bits.astype(np.float32)
    noise += np.float32(0.5)
    noise *= np.float32(-(2.0**-32))
    np.maximum(noise, -_BELOW_ONE, out=noise)
    np.log1p(noise, out=noise)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    return np.negative(noise, out=noise)


# The most and the least noise that there is: of the bits 0 and of 2^32 - 1.
HIGHEST, LOWEST = (float(end) for end in gumbel_from_bits(np.array([0, 0xFFFFFFFF], np.uint32)))


def gumbel_of(
    seed: int | NDArray[np.uint64], position: int | NDArray[np.int64], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """The noise of chosen token ids: [n] float32; see `random_bits`."""
    return gumbel_from_bits(random_bits(seed, position, tokens))


def gumbel_rows(seeds: Sequence[int], positions: Sequence[int], vocabulary: int) -> NDArray[np.float32]:
    """The noise of whole positions: [rows, vocabulary] float32, g(seeds[r], positions[r], v) for every token id v.

    It is drawn in parts of `_AT_ONCE` values, which stay in a processor's nearer caches.
    """
    groups, part = -(-vocabulary // 4), _AT_ONCE // 4
    rows = np.empty((len(seeds), groups * 4), np.float32)
    together = max(1, part // groups)
    for row in range(0, len(seeds), together):
        some = slice(row, row + together)
        for first in range(0, groups, part):
            bits = bit_rows(seeds[some], positions[some], first, min(part, groups - first))
            rows[some, 4 * first : 4 * (first + part)] = gumbel_from_bits(bits)
    return rows[:, :vocabulary]


class NoiseRows:
    """Rows of noise, the latest used kept: siblings share a position, and the step after a refused draft asks again.

    May be used from several threads.

    Args:
        vocabulary: Token ids per row.
    """

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary
        self._limit = max(1, min(_KEPT_ROWS, _KEPT_BYTES // (4 * vocabulary)))
        self._kept: OrderedDict[tuple[int, int], NDArray[np.float32]] = OrderedDict()
        self._lock = Lock()

    def __call__(self, wanted: Sequence[tuple[int, int]]) -> list[NDArray[np.float32]]:
        """The rows of pairs of seed and position: [vocabulary] float32 each, read-only."""
        with self._lock:
            missing = [pair for pair in dict.fromkeys(wanted) if pair not in self._kept]
            if missing:
                self._draw(missing)
            for pair in wanted:
                self._kept.move_to_end(pair)
            rows = [self._kept[pair] for pair in wanted]
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
        return rows

    def _draw(self, missing: Sequence[tuple[int, int]]) -> None:
        ahead = max(1, min(_AHEAD, _AT_ONCE // self._vocabulary) // len(missing))
        pairs = [(seed, position + i) for i in range(ahead) for seed, position in missing]
        pairs = [pair for pair in dict.fromkeys(pairs) if pair not in self._kept]
        rows = gumbel_rows([seed for seed, _ in pairs], [position for _, position in pairs], self._vocabulary)
        rows.setflags(write=False)
        self._kept.update(zip(pairs, rows, strict=True))


@lru_cache(maxsize=8)
def noise_rows(vocabulary: int) -> NoiseRows:
    """The rows of one vocabulary that this process remembers."""
    return NoiseRows(vocabulary)
