"""For commands that start processes of their own: an end in order, and ports to give away."""

from __future__ import annotations

import contextlib
import signal
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """SIGTERM as Ctrl-C, so that nothing is left running or lying about; a further one does not disturb the ending."""

    def end(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, lambda *_: None)
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # in the background of a shell's script Ctrl-C is ignored
            raise KeyboardInterrupt
        interrupt(number, frame)  # raises it, or cancels what asyncio.run runs, so that its `finally` can wait

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def free_port(wanted: int = 0) -> int:
    """That loopback port if nobody listens there, else another one."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return free_port()
        return int(probe.getsockname()[1])
