"""What HTTP/2 frames a connection is made of, and how many bytes each kind takes (RFC 9113, section 4.1).

Only headers are read. A connection that does not begin with HTTP/2's preface, such as one with TLS, stays uncounted.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADER_BYTES = 9
_KINDS = {
    0: "data", 1: "headers", 3: "rst_stream", 4: "settings", 6: "ping", 7: "goaway", 8: "window_update",
    9: "continuation",
}  # fmt: skip


@dataclass(slots=True)
class Tally:
    """Frames of one kind.

    Attributes:
        frames: How many.
        bytes: With their headers of 9 bytes.
    """

    frames: int = 0
    bytes: int = 0


@dataclass(slots=True)
class FrameTallies:
    """Per direction, a tally for each kind of frame, over all connections of a proxy."""

    up: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    down: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def as_dict(self) -> dict[str, dict[str, list[int]]]:
        """For JSON: direction, kind, [frames, bytes]."""
        return {
            name: {kind: [tally.frames, tally.bytes] for kind, tally in tallies.items()}
            for name, tallies in (("up", self.up), ("down", self.down))
        }


class FrameReader:
    """Follows one direction of one connection, however its bytes are cut.

    Args:
        tallies: Of that direction.
        preface: Whether the preface comes first: it does from the client.
    """

    def __init__(self, tallies: dict[str, Tally], *, preface: bool) -> None:
        self._tallies = tallies
        self._preface = PREFACE if preface else b""
        self._header = bytearray()
        self._skip = 0
        self.opaque = False

    def feed(self, data: bytes) -> None:
        """Take bytes in order."""
        at = 0
        while at < len(data) and not self.opaque:
            if self._preface:
                size = min(len(self._preface), len(data) - at)
                self.opaque = data[at : at + size] != self._preface[:size]
                self._preface = self._preface[size:]
            elif self._skip:
                size = min(self._skip, len(data) - at)
                self._skip -= size
            else:
                size = min(_HEADER_BYTES - len(self._header), len(data) - at)
                self._header += data[at : at + size]
                self._count()
            at += size

    def _count(self) -> None:
        if len(self._header) < _HEADER_BYTES:
            return
        self._skip = int.from_bytes(self._header[:3], "big")
        tally = self._tallies[_KINDS.get(self._header[3], "other")]
        tally.frames += 1
        tally.bytes += _HEADER_BYTES + self._skip
        self._header.clear()
