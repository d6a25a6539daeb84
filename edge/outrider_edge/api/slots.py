"""Who may answer now, who waits, and who is sent away: a bound on sessions at once and on those that queue for one."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from outrider_shared.errors import LimitError, ParameterError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Slots:
    """Hands out session slots, first come first served.

    Args:
        most: Sessions at once.
        queue: Requests that may wait.
        queue_s: How long one waits at most.
    """

    def __init__(self, most: int, queue: int, queue_s: float) -> None:
        self.most, self._queue, self._queue_s = most, queue, queue_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.used = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    @contextlib.asynccontextmanager
    async def take(self, count: int) -> AsyncIterator[None]:
        """Hold `count` slots.

        Raises:
            ParameterError: if there are not that many in all.
            LimitError: if the queue is full, or the wait was too long.
        """
        if count > self.most:
            message = f"{count} answers were asked for at once"
            raise ParameterError(message, hint=f"this device gives {self.most}", param="n")
        await self._enter(count)
        try:
            yield
        finally:
            self._leave(count)

    async def _enter(self, count: int) -> None:
        if not self._waiting and self.used + count <= self.most:
            self._take(count)
            return
        if len(self._waiting) >= self._queue:
            raise LimitError(
                f"{self.used} answers are being made and {len(self._waiting)} wait", hint="try again later"
            )
        place = count, asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._queue_s):
                await place[1]
        except BaseException as error:
            if place in self._waiting:
                self._waiting.remove(place)
                self._admit()
            elif not place[1].cancelled():  # admitted in the same moment
                self._leave(count)
            if isinstance(error, TimeoutError):
                raise LimitError(f"no slot became free within {self._queue_s:g} s", hint="try again later") from None
            raise

    async def idle(self) -> None:
        """Return when nobody holds a slot."""
        await self._idle.wait()

    def _take(self, count: int) -> None:
        self.used += count
        self._idle.clear()

    def _leave(self, count: int) -> None:
        self.used -= count
        self._admit()
        if not self.used:
            self._idle.set()

    def _admit(self) -> None:
        while self._waiting and self.used + self._waiting[0][0] <= self.most:
            count, future = self._waiting.popleft()
            if not future.done():
                self._take(count)
                future.set_result(None)
