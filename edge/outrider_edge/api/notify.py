"""Tells systemd how the daemon is (sd_notify(3)): ready, stopping, alive. Without systemd, nothing happens."""

from __future__ import annotations

import asyncio
import os
import socket

import structlog

_log = structlog.get_logger(__name__)


def notify(state: str) -> bool:
    """Send a state such as "READY=1"; whether anybody listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            # A leading @ names a socket in the abstract namespace.
            channel.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            _log.warning("systemd could not be told", state=state, error=str(error))
            return False
    return True


def watchdog_s() -> float | None:
    """How often systemd wants to hear from this process; None if not at all (sd_watchdog_enabled(3))."""
    interval, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not interval.isdecimal() or int(interval) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(interval) / 1e6


async def keep_watchdog_quiet() -> None:
    """Report in at twice the wanted rate, from the event loop: a loop that hangs is one that systemd restarts."""
    interval_s = watchdog_s()
    while interval_s is not None:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s / 2)
