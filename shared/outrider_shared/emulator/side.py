"""One socket of an emulated connection: passes on what asyncio says, and writes, pauses and ends as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_shared.emulator.connection import Connection

# SO_LINGER on, 0 s: closing sends a reset.
_RESET = struct.pack("ii", 1, 0)


class Side(asyncio.Protocol):
    """A socket of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.transport: asyncio.Transport | None = None
        self.full = self.finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is there."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._connection.opened(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of the peer."""
        self._connection.received(self, data)

    def eof_received(self) -> bool:
        """The peer has no more to say, but may listen."""
        self._connection.received(self, b"")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.transport = None
        self._connection.lost(reset=exc is not None)

    def pause_writing(self) -> None:
        """The peer reads too slowly."""
        self.full = True

    def resume_writing(self) -> None:
        """The peer reads on."""
        self.full = False
        self._connection.flush()

    def write(self, data: bytes) -> None:
        """Hand bytes to the peer; b"" is the end."""
        if self.transport is None or self.transport.is_closing():
            return
        if data:
            self.transport.write(data)
        else:
            self.finished = True
            with contextlib.suppress(OSError):
                self.transport.write_eof()

    def pause(self, *, paused: bool) -> None:
        """Stop or go on taking bytes from the peer."""
        if self.transport is not None and paused:
            self.transport.pause_reading()
        elif self.transport is not None:
            self.transport.resume_reading()

    def end(self, *, reset: bool) -> None:
        """Close the socket: in order, or so that the peer sees a reset."""
        if self.transport is None:
            return
        if reset:
            with contextlib.suppress(OSError):
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.transport.abort()
        else:
            self.transport.close()
