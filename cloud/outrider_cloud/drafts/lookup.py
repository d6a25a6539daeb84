"""What followed the same words earlier in a session's own log (Saxena, "Prompt Lookup Decoding", 2023), incrementally.

Pairs of tokens are indexed as the log grows, once each; a search looks at the latest few places of the last pair and
takes the one with the longest run of equal tokens before it. Both cost microseconds, whatever the log's length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_PLACES = 8
_LONGEST_RUN = 12


class PromptLookup:
    """The index of one log.

    Args:
        log: The session's tokens; it may grow between calls, nothing else.
    """

    def __init__(self, log: Sequence[int]) -> None:
        self._log = log
        self._indexed = 1
        # (token before, token) -> where a token follows that pair, ascending.
        self._places: dict[tuple[int, int], list[int]] = {}

    def continuation(self, most: int) -> tuple[Sequence[int], int]:
        """Up to `most` tokens that followed the longest run of last tokens before, and that run's length; or none."""
        log, end = self._log, len(self._log)
        for place in range(self._indexed + 1, end):
            self._places.setdefault((log[place - 2], log[place - 1]), []).append(place)
        self._indexed = max(self._indexed, end - 1)
        if end < 3:
            return (), 0
        places = self._places.get((log[-2], log[-1]), ())[-_PLACES:]
        if not places:
            return (), 0
        run, best = max((self._run(place), place) for place in places)
        return log[best : best + most], run

    def _run(self, place: int) -> int:
        """How many tokens before `place` equal the log's last ones."""
        log, length = self._log, 2
        while length < min(_LONGEST_RUN, place) and log[place - 1 - length] == log[-1 - length]:
            length += 1
        return length
