"""What a listener on the network hears of a TLS connection: when each record passed, which way, its size (RFC 8446).

Only headers are read. A connection without TLS stays unheard; its HTTP/2 frames are counted by `frames`.
"""

from __future__ import annotations

from dataclasses import dataclass

_HEADER_BYTES = 5
# Content types: change cipher spec, alert, handshake, application data.
_TYPES = range(20, 24)
_DATA = 23


@dataclass(frozen=True, slots=True)
class Heard:
    """A record of application data.

    Attributes:
        at_s: When it was complete, on the proxy's clock.
        bytes: With its header.
        up: From the client.
    """

    at_s: float
    bytes: int
    up: bool


class RecordReader:
    """Follows one direction of one connection, however its bytes are cut.

    Args:
        heard: Where records are put; None hears nothing.
        up: Which direction.
    """

    def __init__(self, heard: list[Heard] | None, *, up: bool) -> None:
        self._heard, self._up = heard, up
        self._header = bytearray()
        self._left = 0
        self._deaf = heard is None

    def feed(self, data: bytes, at_s: float) -> None:
        """Take bytes in order."""
        at = 0
        while at < len(data) and not self._deaf:
            if self._left:
                size = min(self._left, len(data) - at)
                self._left -= size
            else:
                size = min(_HEADER_BYTES - len(self._header), len(data) - at)
                self._header += data[at : at + size]
                self._begin()
            at += size
            self._end(at_s)

    def _begin(self) -> None:
        if self._header[0] not in _TYPES:
            self._deaf = True
        elif len(self._header) == _HEADER_BYTES:
            self._left = int.from_bytes(self._header[3:], "big")

    def _end(self, at_s: float) -> None:
        if self._deaf or self._left or len(self._header) < _HEADER_BYTES:
            return
        if self._header[0] == _DATA and self._heard is not None:
            size = _HEADER_BYTES + int.from_bytes(self._header[3:], "big")
            self._heard.append(Heard(at_s, size, self._up))
        self._header.clear()
