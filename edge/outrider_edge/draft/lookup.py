"""Drafts without a model: what followed the same words earlier in the prompt or the answer.

Prompt lookup (Saxena, "Prompt Lookup Decoding", 2023). It costs microseconds and is strong where answers quote: names
of devices, arguments of calls, code. It knows nothing of the noise, so at a temperature it is right less often than a
model; the calibration finds that out.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from outrider_shared.sampling.rule import Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.sampling import SamplingParams

SOURCE = "lookup"
_ITEM = array("I").itemsize


class LookupDrafter:
    """Proposes what followed the latest earlier occurrence of the longest run of last tokens.

    Args:
        longest, shortest: Lengths of the runs that are looked for, in tokens.
    """

    def __init__(self, longest: int = 6, shortest: int = 2) -> None:
        self._lengths = range(longest, shortest - 1, -1)

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:  # noqa: ARG002
        """The token that followed, its margin being the length of the run; None if no run occurred before."""
        data = array("I", tokens).tobytes()
        for length in self._lengths:
            if len(tokens) > length and (place := _earlier(data, length)) is not None:
                return Guess((tokens[place + length],), (0.0,), float(length), SOURCE)
        return None


def _earlier(data: bytes, length: int) -> int | None:
    """Where the last `length` items occurred before, latest first; at least one item follows them there."""
    run, end = data[-length * _ITEM :], len(data) - _ITEM
    while (found := data.rfind(run, 0, end)) >= 0:
        if found % _ITEM == 0:
            return found // _ITEM
        end = found + len(run) - 1  # a match across item borders is none
    return None
