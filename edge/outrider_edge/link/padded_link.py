"""A stream whose messages travel in blocks of one size at fixed times; see `outrider_shared.padding`."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING

from outrider_shared.errors import OutriderError
from outrider_shared.padding import BlockReader, PacedSender, Padding
from outrider_shared.wire import FRAME_BYTES, MAX_MESSAGE_BYTES
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from outrider_edge.link.link import Link
    from outrider_edge.session.events import Totals

# Beyond a round, how long a stream that is complete may take to end.
_GRACE_S = 1.0


class PaddedStreams:
    """Pads a device's streams, and sees those to their end whose answers are complete.

    Args:
        padding: How.
    """

    def __init__(self, padding: Padding) -> None:
        self.padding = padding
        self._parting: set[asyncio.Task[None]] = set()

    def over(self, link: Link, totals: Totals) -> PaddedLink:
        """A stream over another one.

        Args:
            link: Fresh.
            totals: Where bytes are counted, with framing.
        """
        return PaddedLink(link, self, totals)

    def see_off(self, link: PaddedLink) -> None:
        """Let a stream run to the end of its round; nobody waits for it."""
        task = asyncio.ensure_future(link.part())
        self._parting.add(task)
        task.add_done_callback(self._parting.discard)

    async def close(self) -> None:
        """Wait for the streams that are parting: to cut them would tell how long the answers were."""
        await asyncio.gather(*self._parting, return_exceptions=True)


class PaddedLink:
    """One stream; a `Link`."""

    def __init__(self, link: Link, streams: PaddedStreams, totals: Totals) -> None:
        self._link, self._streams, self._totals = link, streams, totals
        self._reader = BlockReader(MAX_MESSAGE_BYTES)
        self._sender = PacedSender(streams.padding, self._send_block)
        self._first = True
        self._arrived: deque[pb.DecodeResponse] = deque()
        self._sending = asyncio.ensure_future(self._sender.run(closes=False))
        # The receiver learns why a stream broke.
        self._sending.add_done_callback(lambda task: task.cancelled() or task.exception())

    @property
    def peer(self) -> str:
        """See `Link`."""
        return self._link.peer

    async def send(self, message: pb.DecodeRequest) -> None:
        """See `Link`."""
        await self._sender.put(message.SerializeToString(), whole=message.HasField("open"))

    async def receive(self) -> pb.DecodeResponse | None:
        """See `Link`; None when both sides have said all, though blocks go on."""
        while not self._arrived:
            if self._reader.ended and self._sender.ended:
                return None
            message = await self._link.receive()
            if message is None or not message.HasField("padded"):
                # A cloud that does not know of padding says so.
                return message
            self._totals.downlink_bytes += message.ByteSize() + FRAME_BYTES
            self._arrived += map(pb.DecodeResponse.FromString, self._reader.feed(message.padded.block))
        return self._arrived.popleft()

    async def half_close(self) -> None:
        """See `Link`; empty blocks go on."""
        self._sender.end()

    async def close(self) -> None:
        """See `Link`; a stream that is complete goes on by itself to the end of its round."""
        if self._reader.ended:
            self._sender.end()
            self._streams.see_off(self)
        else:
            self._sending.cancel()
            await self._link.close()

    async def part(self) -> None:
        """Wait until the cloud ends the stream, and let go of it."""
        try:
            with contextlib.suppress(OutriderError, TimeoutError):
                async with asyncio.timeout(self._streams.padding.round_s + _GRACE_S):
                    while await self._link.receive() is not None:
                        pass
        finally:
            self._sending.cancel()
            await self._link.close()

    async def _send_block(self, block: bytes) -> None:
        padded = pb.Padded(block=block)
        if self._first:
            padded.rule.CopyFrom(self._streams.padding.to_wire())
            self._first = False
        message = pb.DecodeRequest(padded=padded)
        self._totals.uplink_bytes += message.ByteSize() + FRAME_BYTES
        await self._link.send(message)
