"""An event loop whose time jumps to the next timer, and a clock for modules that ask `time`."""

from __future__ import annotations

import asyncio
import contextlib
import selectors
import sys
import time
import types


class _Jumping(selectors.SelectSelector):
    """Selects nothing, and moves the clock on instead of waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("nobody is going to wake anybody: the simulation is stuck")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time.

    Attributes:
        ahead_s: While the engine computes a step, how far it is ahead of the loop: the step is computed at its start
            and its events are delivered at its end, which nobody outside of the engine can tell apart.
    """

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def clock(self) -> float:
        """Seconds, as whoever computes now sees them."""
        return self._jumping.now + self.ahead_s

    def call_soon_threadsafe(self, callback, *args, context=None):
        if self.ahead_s > 0.0:
            return self.call_later(self.ahead_s, callback, *args, context=context)
        return self.call_soon(callback, *args, context=context)

    def _write_to_self(self) -> None:
        """Nothing sleeps, so nothing has to be woken."""


class Passes:
    """Stands for the thread in which a device drafts (`DraftRunner`): computes now, tells later.

    Args:
        pass_s: Time of one pass of the draft model; prompt lookup costs nothing.
    """

    def __init__(self, pass_s: float) -> None:
        self.pass_s = pass_s

    async def propose(self, drafter, tokens, params, width):
        guess = drafter.propose(tokens, params, width)
        taken_s = self.pass_s if guess is None or guess.source == "model" else 0.0
        await asyncio.sleep(taken_s)
        return guess, taken_s

    def close(self) -> None:
        """Nothing to let go of."""


@contextlib.contextmanager
def virtual_time():
    """Run a block with a virtual loop; product modules that ask `time` are told its time."""
    loop = VirtualLoop()
    shim = types.SimpleNamespace(monotonic=loop.clock, perf_counter=loop.clock, time=loop.clock)
    names = ("outrider_edge.", "outrider_cloud.drafts", "outrider_cloud.engine", "outrider_cloud.service")
    patched = [m for n, m in sys.modules.items() if n.startswith(names) and getattr(m, "time", None) is time]
    for module in patched:
        module.time = shim
    try:
        asyncio.set_event_loop(loop)
        yield loop
    finally:
        for module in patched:
            module.time = time
        asyncio.set_event_loop(None)
        loop.close()
