"""What changes logits before the temperature: penalties and bias, in numpy. This is the definition; torch equals it.

For a row that chooses the token at position i, with `log` the i tokens before it on its own path (drafted ancestors
included), c_v how often the answer so far has token v, and s_v whether prompt or answer have it:

    1. repetition    z_v = z_v / r if z_v > 0 else z_v * r,     where s_v
    2. frequency     z_v = z_v - f * c_v,                       where s_v
    3. presence      z_v = z_v - p,                             where c_v > 0
    4. bias          z_v = z_v + bias_v
    5. end tokens    z_v = -inf while the answer is shorter than min_tokens
    6. grammar       z_v = -inf where the grammar does not allow v

all in float32, in this order; then come temperature, top-k, top-p, min-p and noise (`rule`). 5 and 6 are the cloud's
alone: a draft that misses them is refused, no more. Every term is a function of the log, so a drafted row, a plain one
and one after a resume are shaped alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_shared.sampling.params import SamplingParams


def shaped(logits: NDArray[np.float32], log: Sequence[int], params: SamplingParams) -> NDArray[np.float32]:
    """Penalties and bias for the token that follows `log`: [vocab] float32, the given array if nothing changes it."""
    if not params.shaped:
        return logits
    out = logits.astype(np.float32)
    if params.penalised:
        ids, counts = count_tokens(log, params.answer_start)
        out[ids] = penalise(out[ids], counts, params)
    for token, bias in params.logit_bias:
        out[token] += np.float32(bias)
    return out


def penalise(z: NDArray[np.float32], counts: NDArray[np.float32], params: SamplingParams) -> NDArray[np.float32]:
    """Repetition, frequency and presence penalty of tokens that the log has.

    Args:
        z: [n] float32 logits of those tokens.
        counts: [n] float32, how often the answer has each.
        params: The penalties.
    """
    repetition, frequency = np.float32(params.repetition_penalty), np.float32(params.frequency_penalty)
    z = np.where(z > 0, z / repetition, z * repetition)
    z = z - frequency * counts
    return z - np.float32(params.presence_penalty) * (counts > 0).astype(np.float32)


def count_tokens(log: Sequence[int], answer_start: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The tokens of a log, ascending, and how often each occurs from `answer_start` on: [n] int64, [n] float32."""
    tokens = np.asarray(log, np.int64)
    ids, inverse = np.unique(tokens, return_inverse=True)
    counts = np.bincount(inverse[answer_start:], minlength=len(ids))
    return ids, counts.astype(np.float32)


class TokenCounts:
    """`count_tokens` of a log that grows, at a constant cost per token; the order of the tokens differs.

    Args:
        answer_start: Index in the log from which on tokens are counted.
    """

    def __init__(self, answer_start: int) -> None:
        self._answer_start = answer_start
        self._length = 0
        self._place: dict[int, int] = {}
        self._ids = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def follow(self, log: Sequence[int]) -> None:
        """Count what the log grew by since the last call."""
        for position in range(self._length, len(log)):
            place = self._place.setdefault(log[position], len(self._place))
            if place == len(self._ids):
                self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._ids[place] = log[position]
            self._counts[place] += position >= self._answer_start
        self._length = len(log)

    def along(self, path: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Tokens and counts of the log and of drafted answer tokens below it: [n] int64, [n] float32."""
        size = len(self._place)
        fresh = list(dict.fromkeys(token for token in path if token not in self._place))
        ids = np.concatenate((self._ids[:size], np.asarray(fresh, np.int64)))
        counts = np.concatenate((self._counts[:size], np.zeros(len(fresh), np.float32)))
        for token in path:
            counts[self._place[token] if token in self._place else size + fresh.index(token)] += 1.0
        return ids, counts
