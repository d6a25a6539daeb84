"""Where draft passes run: short ones in the event loop, long ones in a thread, so that commits are seen meanwhile."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.drafting.drafter import Drafter
    from outrider_shared.sampling import SamplingParams
    from outrider_shared.sampling.rule import Guess

# A pass shorter than this runs in the event loop: handing it to a thread would cost as much as it takes.
INLINE_S = 0.002


class DraftRunner(Protocol):
    """Runs a drafter for a session."""

    async def propose(
        self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams, width: int
    ) -> tuple[Guess | None, float]:
        """What `Drafter.propose` gives, and the seconds that it took."""

    def close(self) -> None:
        """Let go of threads; nothing may be proposed afterwards."""


class ThreadRunner:
    """One thread for all sessions of a device, since a second pass at once would only slow the first.

    Args:
        threaded: False runs everything in the event loop.
    """

    def __init__(self, *, threaded: bool = True) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="draft") if threaded else None
        # Unknown at first, and the first pass reads the whole prompt. What is known of a drafter goes with it.
        self._pass_s: WeakKeyDictionary[Drafter, float] = WeakKeyDictionary()

    async def propose(
        self, drafter: Drafter, tokens: Sequence[int], params: SamplingParams, width: int
    ) -> tuple[Guess | None, float]:
        """See `DraftRunner`."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        if self._executor is None or self._pass_s.get(drafter, INLINE_S) < INLINE_S:
            guess = drafter.propose(tokens, params, width)
        else:
            guess = await loop.run_in_executor(self._executor, drafter.propose, tokens, params, width)
        taken_s = loop.time() - started
        self._pass_s[drafter] = taken_s
        return guess, taken_s

    def close(self) -> None:
        """See `DraftRunner`; waits for the pass at hand."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
