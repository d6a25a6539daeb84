"""The in-memory twin of gRPC: real bytes, a real `SessionHandler` at the other end, and a link in between."""

from __future__ import annotations

import asyncio
import random

from outrider_cloud.service.handler import SessionHandler
from outrider_shared.errors import UnavailableError
from outrider_shared.wire import FRAME_BYTES
from outrider_wire.v1 import verifier_pb2 as pb

# Timers of the same time fire in any order; messages do not.
_APART_S = 1e-9


class _Direction:
    """Delays and orders the messages of one direction. Its state is the connection's, not the stream's.

    Attributes:
        bytes: With framing.
        seen: What a listener on the network sees: when a message left, and its size.
    """

    def __init__(self, network, *, up: bool) -> None:
        self._network, self._up = network, up
        self._free_at = self._last = 0.0
        self.bytes = 0
        self.seen: list[tuple[float, int]] = []

    def carry(self, data: bytes, deliver) -> None:
        loop, profile = asyncio.get_running_loop(), self._network.profile
        size = len(data) + FRAME_BYTES
        self.bytes += size
        self.seen.append((loop.time(), size))
        bps = profile.up_bps if self._up else profile.down_bps
        self._free_at = max(loop.time(), self._free_at) + (size * 8 / bps if bps else 0.0)
        jitter_s = profile.jitter_s * self._network.random.uniform(-0.5, 0.5)
        at = self._free_at + self._network.stack_s + max(0.0, profile.rtt_s / 2 + jitter_s)
        self._last = max(self._last + _APART_S, at)
        loop.call_at(self._last, deliver)

    def hold_until(self, at: float) -> None:
        """Nothing arrives before then: a stall, as a lost packet causes it."""
        self._last = max(self._last, at)


class Network:
    """A device's connection.

    Args:
        service: The cloud's `Service`.
        profile: Of the link; may be replaced at any time.
        stack_s: What either end's software adds to a message.
        seed: Of the jitter.
    """

    def __init__(self, service, profile, stack_s: float = 0.0003, seed: int = 0) -> None:
        self.service, self.profile, self.stack_s = service, profile, stack_s
        self.random = random.Random(seed)
        self.up, self.down = _Direction(self, up=True), _Direction(self, up=False)
        self.links: list[VirtualLink] = []

    where = "virtual"

    def note(self, peer, *, alive) -> None:
        """Nothing is remembered."""

    async def connect(self) -> VirtualLink:
        link = VirtualLink(self)
        self.links.append(link)
        return link


class VirtualLink:
    """One stream."""

    peer = "virtual"

    def __init__(self, network: Network) -> None:
        self._network = network
        self._requests: asyncio.Queue = asyncio.Queue()
        self._responses: asyncio.Queue = asyncio.Queue()
        handler = SessionHandler(network.service, f"device-{id(network)}", self._from_cloud)
        self._serving = asyncio.ensure_future(self._serve(handler))
        self.broken = False

    async def send(self, message: pb.DecodeRequest) -> None:
        if self.broken:
            raise UnavailableError("the link was cut")
        data = message.SerializeToString()
        self._network.up.carry(data, lambda: self._requests.put_nowait(pb.DecodeRequest.FromString(data)))

    async def receive(self) -> pb.DecodeResponse | None:
        item = await self._responses.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def half_close(self) -> None:
        self._network.up.carry(b"", lambda: self._requests.put_nowait(None))

    async def close(self) -> None:
        if not self._serving.done():
            self._serving.cancel()
        await asyncio.gather(self._serving, return_exceptions=True)

    def cut(self) -> None:
        """The connection breaks, both ends notice at once."""
        self.broken = True
        self._serving.cancel()
        self._responses.put_nowait(UnavailableError("the link was cut"))

    async def _from_cloud(self, message: pb.DecodeResponse) -> None:
        data = message.SerializeToString()

        def deliver() -> None:
            if not self.broken:
                self._responses.put_nowait(pb.DecodeResponse.FromString(data))

        self._network.down.carry(data, deliver)

    async def _serve(self, handler: SessionHandler) -> None:
        await handler.run(self._arriving())
        self._network.down.carry(b"", lambda: self._responses.put_nowait(None))

    async def _arriving(self):
        while (request := await self._requests.get()) is not None:
            yield request
