"""Notices at once that a process of the team has ended: each holds a connection to rank 0, whose end tells it.

A collective that waits for a dead rank may wait for long, and an idle service runs none. The connection carries nothing
after its first bytes, a number that only members know, so it works beside any launcher and any backend.
"""

from __future__ import annotations

import selectors
import socket
import threading
from typing import TYPE_CHECKING

from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_HELLO_BYTES = 20
_JOIN_S = 120.0


class Failure:
    """The first thing that went wrong with the team.

    Args:
        handler: Called once, from any thread.

    Attributes:
        reason: A sentence; empty as long as all is well.
    """

    def __init__(self, handler: Callable[[], None]) -> None:
        self.reason = ""
        self.handler = handler
        self._lock, self._event, self._closing = threading.Lock(), threading.Event(), False

    def report(self, reason: str) -> None:
        """Somebody is lost; only the first report counts, and none once we are ending by ourselves."""
        with self._lock:
            if self.reason or self._closing:
                return
            self.reason = reason
        self._event.set()
        self.handler()

    def closing(self) -> None:
        """From now on it is no failure that others end."""
        with self._lock:
            self._closing = True

    def wait(self, seconds: float) -> str:
        """The reason, waiting for it at most so long."""
        self._event.wait(seconds)
        return self.reason


def open_listener(host: str) -> socket.socket:
    """Rank 0's end, for `watch_members`."""
    loopback = host.startswith("127.") or host == "localhost"
    return socket.create_server(("127.0.0.1" if loopback else "", 0))


def watch_members(listener: socket.socket, token: bytes, ranks: int, failure: Failure) -> None:
    """Take the connections of all other ranks, then watch them in a thread.

    Raises:
        UnavailableError: if not all come.
    """
    members: dict[socket.socket, int] = {}
    listener.settimeout(_JOIN_S)
    while len(members) < ranks - 1:
        try:
            connection, _ = listener.accept()
            connection.settimeout(_JOIN_S)
            hello = connection.recv(_HELLO_BYTES, socket.MSG_WAITALL)
        except OSError as error:
            raise UnavailableError(f"{ranks - 1 - len(members)} of {ranks} ranks did not join: {error}") from error
        if len(hello) != _HELLO_BYTES or hello[4:] != token:
            connection.close()  # a stranger
            continue
        _keep_alive(connection)
        members[connection] = int.from_bytes(hello[:4], "big")
    listener.close()

    def run() -> None:
        selector = selectors.DefaultSelector()
        for connection in members:
            selector.register(connection, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                connection = next(c for c in members if c is key.fileobj)
                if _ended(connection):
                    selector.unregister(connection)
                    failure.report(f"rank {members[connection]} of {ranks} has ended")

    threading.Thread(target=run, name="watch", daemon=True).start()


def watch_leader(host: str, port: int, token: bytes, rank: int, failure: Failure) -> None:
    """Connect to rank 0 and watch it in a thread.

    Raises:
        UnavailableError: if it does not answer.
    """
    try:
        connection = socket.create_connection((host, port), timeout=_JOIN_S)
        connection.sendall(rank.to_bytes(4, "big") + token)
    except OSError as error:
        raise UnavailableError(f"rank 0 does not answer on {host}:{port}: {error}") from error
    _keep_alive(connection)

    def run() -> None:
        while not _ended(connection):
            pass  # it never sends: recv waits
        failure.report("rank 0 has ended")

    threading.Thread(target=run, name="watch", daemon=True).start()


def _keep_alive(connection: socket.socket) -> None:
    """A host that vanished without a word is noticed within half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _ended(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1)
    except OSError:
        return True
