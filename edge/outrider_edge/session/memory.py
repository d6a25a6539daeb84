"""What a device remembers of clouds: what was measured, and which logs they may still have.

With the logs, the next turn of a conversation sends only what is new.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_edge.session.estimates import Measured

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt that a cloud may have.

    Attributes:
        key: Names the log there.
        length: Tokens of it that the prompt begins with.
    """

    key: bytes
    length: int


class SentLogs:
    """Logs that clouds were sent or committed, by the cloud's address and key. Shared by a device's sessions.

    Args:
        most: Logs remembered.
        worth: Fewer tokens than this cost less than naming them.
    """

    def __init__(self, most: int = 32, worth: int = 32) -> None:
        self._most, self._worth = most, worth
        self._logs: OrderedDict[tuple[str, bytes], Sequence[int]] = OrderedDict()

    def remember(self, peer: str, key: bytes, log: Sequence[int]) -> None:
        """That cloud has that log; it may grow."""
        if not key:
            return
        self._logs[peer, key] = log
        self._logs.move_to_end((peer, key))
        while len(self._logs) > self._most:
            self._logs.popitem(last=False)

    def forget(self, peer: str, key: bytes) -> None:
        """That cloud does not have it any more."""
        self._logs.pop((peer, key), None)

    def best(self, peer: str, prompt: Sequence[int]) -> Prefix | None:
        """The log that shares the longest beginning with the prompt, if that is worth naming."""
        best: Prefix | None = None
        for (where, key), log in self._logs.items():
            if where == peer:
                length = common_length(log, prompt)
                if length >= self._worth and (best is None or length > best.length):
                    best = Prefix(key, length)
        return best


@dataclass(frozen=True, slots=True)
class Clouds:
    """What the sessions of a device share about clouds.

    Attributes:
        logs: What clouds were sent.
        measured: How far they are, how long their steps take.
    """

    logs: SentLogs = field(default_factory=SentLogs)
    measured: Measured = field(default_factory=Measured)


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix."""
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)
