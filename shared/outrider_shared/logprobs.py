"""Log-probabilities of committed tokens, and how they travel: as halves (IEEE binary16), told only to who asked.

They are the target's own: natural logarithms of softmax(z) at temperature 1, before penalties, bias, grammar and
filters. A half keeps 11 bits: 0.05 % of the value, so e.g. -12.345 becomes -12.344.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outrider_shared.errors import ParameterError, ProtocolError
from outrider_shared.packing import pack_tokens, unpack_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_TOP_LOGPROBS = 20
_LEAST = float(np.finfo(np.float16).min)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One position of an answer.

    Attributes:
        logprob: Of the committed token.
        top: (token id, log-probability) of the likeliest tokens, best first; as many as were asked for.
    """

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def check_top_logprobs(top: int, *, logprobs: bool) -> None:
    """Refuse a number of alternatives that is out of range, or comes without log-probabilities.

    Raises:
        ParameterError: if it is.
    """
    if not 0 <= top <= MAX_TOP_LOGPROBS:
        raise ParameterError(f"top_logprobs is {top}", hint=f"it must be from 0 to {MAX_TOP_LOGPROBS}")
    if top and not logprobs:
        raise ParameterError(f"top_logprobs is {top}, but logprobs is off", hint="ask for logprobs, too")


def pack_logprobs(entries: Sequence[TokenLogprobs], vocabulary: int) -> tuple[bytes, bytes, bytes]:
    """The bytes of a commit: log-probabilities, ids of the likeliest tokens, and their log-probabilities."""
    top = [pair for entry in entries for pair in entry.top]
    return (
        _pack_halves([entry.logprob for entry in entries]),
        pack_tokens([token for token, _ in top], vocabulary),
        _pack_halves([logprob for _, logprob in top]),
    )


def unpack_logprobs(packed: tuple[bytes, bytes, bytes], count: int, top: int, vocabulary: int) -> list[TokenLogprobs]:
    """The inverse of `pack_logprobs`, for `count` tokens with `top` alternatives each.

    Raises:
        ProtocolError: if there are not exactly that many, or a token is outside the vocabulary.
    """
    own, ids, alternatives = packed
    if len(own) != 2 * count or len(alternatives) != 2 * count * top:
        raise ProtocolError(
            f"{len(own) // 2} log-probabilities and {len(alternatives) // 2} alternatives came for {count} tokens",
            hint=f"{count} and {count * top} were expected",
        )
    pairs = list(zip(unpack_tokens(ids, count * top, vocabulary), _unpack_halves(alternatives), strict=True))
    return [
        TokenLogprobs(logprob, tuple(pairs[i * top : (i + 1) * top])) for i, logprob in enumerate(_unpack_halves(own))
    ]


def _pack_halves(values: Sequence[float]) -> bytes:
    return np.clip(np.asarray(values, np.float32), _LEAST, 0.0).astype("<f2").tobytes()


def _unpack_halves(data: bytes) -> list[float]:
    values: list[float] = np.frombuffer(data, "<f2").astype(np.float64).tolist()
    return values
