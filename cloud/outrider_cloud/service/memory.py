"""Logs of earlier sessions, so that a device need not send them again with the next turn of a conversation.

Rules:
    * A log is found by its key alone, which only the device that it was given to knows, and only for that device.
    * Nothing tells a wrong key from a forgotten log, or a wrong digest from either: the answer is always "send it all".
    * Bounds: tokens in all, and of one device; the longest unused go first.

What it does not do: hold KV (the engine shares that by content), or survive the process; a device sends what is lost
again.
"""

from __future__ import annotations

import hmac
from array import array
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_shared.prefix import prefix_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

# One device's part of the whole.
_DEVICE_SHARE = 8


@dataclass(frozen=True, slots=True)
class _Log:
    device: str
    tokens: array[int]


class LogMemory:
    """Logs by key.

    Args:
        most_tokens: Kept in all; 0 keeps none.
    """

    def __init__(self, most_tokens: int) -> None:
        self._most = most_tokens
        self._logs: OrderedDict[bytes, _Log] = OrderedDict()
        self._held: dict[str, int] = {}

    def __len__(self) -> int:
        """Logs held."""
        return len(self._logs)

    @property
    def tokens(self) -> int:
        """Tokens held."""
        return sum(self._held.values())

    @property
    def keeps(self) -> bool:
        """Whether anything is kept at all."""
        return self._most > 0

    def keep(self, key: bytes, device: str, log: Sequence[int]) -> None:
        """Remember a log, in place of what the key named before."""
        self._drop(key)
        share = max(1, self._most // _DEVICE_SHARE)
        if not log or len(log) > share:
            return
        while self._held.get(device, 0) + len(log) > share:
            self._drop(next(k for k, held in self._logs.items() if held.device == device))
        while self.tokens + len(log) > self._most:
            self._drop(next(iter(self._logs)))
        self._logs[key] = _Log(device, array("I", log))
        self._held[device] = self._held.get(device, 0) + len(log)

    def find(self, key: bytes, device: str, length: int, digest: bytes) -> tuple[int, ...] | None:
        """The first `length` tokens of a log; None if they are not what the device means, for whatever reason."""
        held = self._logs.get(key)
        if held is None or held.device != device or length > len(held.tokens):
            return None
        tokens = held.tokens[:length]
        if not hmac.compare_digest(prefix_digest(key, tokens), digest):
            return None
        self._logs.move_to_end(key)
        return tuple(tokens)

    def _drop(self, key: bytes) -> None:
        held = self._logs.pop(key, None)
        if held is not None:
            self._held[held.device] -= len(held.tokens)
            if not self._held[held.device]:
                del self._held[held.device]
