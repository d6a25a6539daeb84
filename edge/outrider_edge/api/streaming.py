"""Server-sent events, and what happens when the client is slow or gone.

Starlette's own streaming response leaves the generator behind when the client goes; here it is closed at once, so
that the cloud is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.responses import Response

from outrider_edge.api.choices import Delta
from outrider_edge.api.errors import body_of, error_body
from outrider_edge.api.smoothing import Pacer
from outrider_shared.errors import OutriderError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Coroutine

    from starlette.types import Receive, Scope, Send

    from outrider_edge.api.choices import End

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": still here\n\n"
_KEEP_ALIVE_S = 15.0
_T = TypeVar("_T")


def sse(body: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


class GoneError(Exception):
    """The client is gone, or takes nothing; nobody is left to tell."""


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled when the client goes first.

    Raises:
        GoneError: if it went.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise GoneError
        return task.result()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Streams bytes; closes their generator when it ends, whoever ends it.

    Args:
        events: What to send.
        stall_s: A client that takes nothing for so long is let go.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes], stall_s: float) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._stall_s = events, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's signature
        """Send, see ASGI."""
        with contextlib.suppress(GoneError, OSError):
            await unless_gone(receive, self._write(send))

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for part in _kept_alive(events):
                try:
                    async with asyncio.timeout(self._stall_s):
                        await send({"type": "http.response.body", "body": part, "more_body": True})
                except TimeoutError:
                    raise GoneError from None
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _kept_alive(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The events, with a comment whenever none came for a while, lest something on the way gives up."""
    waiting: asyncio.Future[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=_KEEP_ALIVE_S)
            if not done:
                yield KEEP_ALIVE
                continue
            try:
                part = waiting.result()
            except StopAsyncIteration:
                return
            finally:
                waiting = None
            yield part
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


def failure(error: Exception) -> bytes:
    """An error in the middle of a stream."""
    if isinstance(error, OutriderError):
        return sse(body_of(error))
    return sse(error_body(500, "something went wrong on this device; its log says what", "internal"))


def _shown(step: Delta | End | BaseException | None) -> bool:
    return isinstance(step, Delta) and bool(step.parts or step.tokens)


async def smoothed(steps: AsyncGenerator[Delta | End]) -> AsyncGenerator[Delta | End]:
    """The same steps, with what came at once spread out; see `smoothing.py`."""
    clock = asyncio.get_running_loop().time
    inbox: asyncio.Queue[Delta | End | BaseException | None] = asyncio.Queue()

    async def collect() -> None:
        try:
            async with contextlib.aclosing(steps):
                async for step in steps:
                    inbox.put_nowait(step)
            inbox.put_nowait(None)
        except Exception as error:  # noqa: BLE001 - it is raised where the steps are read
            inbox.put_nowait(error)

    collector, pacer = asyncio.ensure_future(collect()), Pacer()
    try:
        while True:
            burst = [await inbox.get()]
            while not inbox.empty():
                burst.append(inbox.get_nowait())
            count = sum(map(_shown, burst))
            times = iter(pacer.burst(clock(), count) if count else ())
            for step in burst:
                if step is None:
                    return
                if isinstance(step, BaseException):
                    raise step
                # What drafting did is told between tokens, and is nothing that a reader waits for.
                at = next(times) if _shown(step) else 0.0
                if at > clock():
                    await asyncio.sleep(at - clock())
                yield step
    finally:
        collector.cancel()
        await asyncio.gather(collector, return_exceptions=True)
