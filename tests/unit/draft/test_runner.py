"""Where draft passes run, and what is remembered of them."""

from __future__ import annotations

import asyncio
import gc
import threading

from outrider_edge.draft.runner import ThreadRunner


class _Noting:
    """Notes which threads it ran in."""

    def __init__(self, threads: list[int]) -> None:
        self._threads = threads

    def propose(self, tokens, params, width):
        self._threads.append(threading.get_ident())


def test_nothing_is_kept_of_drafters_whose_sessions_ended():
    """A daemon makes thousands of drafters, one a session; the first pass of a new one is never taken for short."""
    runner, here = ThreadRunner(), threading.get_ident()

    async def session():
        threads: list[int] = []
        drafter = _Noting(threads)
        for _ in range(2):
            await runner.propose(drafter, [1], None, 1)
        assert threads[0] != here, "its first pass reads the whole prompt, and commits have to be seen meanwhile"

    for _ in range(50):
        asyncio.run(session())
    gc.collect()
    assert len(runner._pass_s) == 0
    runner.close()
