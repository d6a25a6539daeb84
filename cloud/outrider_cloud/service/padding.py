"""A stream that the device wants padded: its blocks are opened here, and what the cloud says leaves in blocks.

The handler does not notice. Blocks come and go while it works, and after it until the round is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Self

from google.protobuf.message import DecodeError

from outrider_shared.errors import OutriderError, ProtocolError
from outrider_shared.padding import BlockReader, PacedSender, Padding
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType


class PaddedStream:
    """One stream; use as an async context manager.

    Args:
        first: The first block, with its rule.
        requests: What follows.
        send: Sends one message; returns when the transport took it.
        max_message_bytes: Longest message that is taken.

    Raises:
        ProtocolError: if the rule is out of bounds.
    """

    def __init__(
        self,
        first: pb.Padded,
        requests: AsyncIterator[pb.DecodeRequest],
        send: Callable[[pb.DecodeResponse], Awaitable[None]],
        max_message_bytes: int,
    ) -> None:
        self._padding = Padding.from_wire(first.rule)
        self._first, self._requests, self._send = first, requests, send
        self._reader = BlockReader(max_message_bytes)
        self._sender = PacedSender(self._padding, self._send_block)
        self._arrived: asyncio.Queue[pb.DecodeRequest | OutriderError | None] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.ensure_future(self._sender.run(closes=True, begin=True)),
            asyncio.ensure_future(self._take()),
        ]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def messages(self) -> AsyncIterator[pb.DecodeRequest]:
        """What the device says.

        Raises:
            ProtocolError: if a block is malformed, or something else comes.
        """
        while (item := await self._arrived.get()) is not None:
            if isinstance(item, OutriderError):
                raise item
            yield item

    async def send(self, message: pb.DecodeResponse) -> None:
        """Say something; returns when no more than a block's worth waits."""
        await self._sender.put(message.SerializeToString())

    async def part(self, timeout_s: float) -> None:
        """All was said: go on with empty blocks to the end of the round, for at most that much longer than it takes."""
        self._sender.end()
        with contextlib.suppress(OutriderError, TimeoutError):
            async with asyncio.timeout(self._padding.round_s + timeout_s):
                await self._tasks[0]

    async def _take(self) -> None:
        """Open blocks as they come; those after the handler's end, too, lest the device notice it by them."""
        try:
            self._open(self._first.block)
            async for request in self._requests:
                if not request.HasField("padded"):
                    raise ProtocolError(f"{request.WhichOneof('body')!r} came outside of a block on a padded stream")
                self._open(request.padded.block)
        except OutriderError as error:
            self._arrived.put_nowait(error)
        else:
            self._arrived.put_nowait(None)

    def _open(self, block: bytes) -> None:
        ended = self._reader.ended
        try:
            for data in self._reader.feed(block):
                self._arrived.put_nowait(pb.DecodeRequest.FromString(data))
        except DecodeError as error:
            raise ProtocolError(f"unreadable message: {error}", hint="the peer does not speak this protocol") from None
        if self._reader.ended and not ended:
            self._arrived.put_nowait(None)

    async def _send_block(self, block: bytes) -> None:
        await self._send(pb.DecodeResponse(padded=pb.Padded(block=block)))
