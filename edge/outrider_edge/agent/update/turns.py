"""A process that runs a small part of the time while somebody waits for an answer, and all the time otherwise.

The least priority is not enough: two threads of one core share its units, caches and memory, so what runs on the idle
one slows the busy one by a third or more. Stopping is the system's (SIGSTOP), so whatever the process does takes its
turns: starting Python, hashing, loading weights.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import Protocol

SHARE = 0.05  # of the time, while somebody waits
_TURN_S = 0.004
_QUIET_S = 0.04  # a shorter pause between two answers is none
_MOST_REST_S = 2.0  # however late this program was to stop it


class Answering(Protocol):
    """Who goes before."""

    @property
    def answering(self) -> bool:
        """Whether somebody waits for an answer now."""

    async def at_rest(self) -> None:
        """Return when nobody waits for an answer."""


async def take_turns(process: asyncio.subprocess.Process, host: Answering) -> None:
    """Stop the process and let it go on, until it ended or this is cancelled."""
    stopped, asked_at = False, float("-inf")
    with contextlib.suppress(ProcessLookupError):
        while process.returncode is None:
            if stopped:
                process.send_signal(signal.SIGCONT)
            stopped, began = False, time.monotonic()
            await asyncio.sleep(_TURN_S)
            now = time.monotonic()
            if host.answering:
                asked_at = now
            if now - asked_at < _QUIET_S:
                process.send_signal(signal.SIGSTOP)
                stopped, rest_s = True, min(_MOST_REST_S, (now - began) * (1 / SHARE - 1))
                asked_at = float("-inf") if await _quiet(host, rest_s) else time.monotonic()


async def _quiet(host: Answering, within_s: float) -> bool:
    """Whether there was a pause within that time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                await host.at_rest()
                await asyncio.sleep(_QUIET_S)
                if not host.answering:
                    return True
    return False
