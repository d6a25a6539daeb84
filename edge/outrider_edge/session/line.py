"""Keeps one stream to the cloud alive: connects, sends, collects, notices a dead peer, tries again.

The conductor (`loop`) never waits for any of it: what happens on the line is put into an inbox.

Rules:
    * One stream at a time. Each begins with `Connected`, and ends with `Broken` if it was not ended here.
    * The last commit is the end: however the stream goes down behind it says nothing about the cloud.
    * The cloud is pinged all the time, and answers from its event loop, whatever its engine does: that tells the round
      trip, and a busy cloud from a dead one. Only `dead_s` without any message breaks the stream.
    * Waits between tries are jittered and grow, until a commit comes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_shared.errors import ConfigError, OutriderError, SessionExistsError, UnavailableError
from outrider_shared.wire import FRAME_BYTES, error_from_wire
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from outrider_edge.link.backoff import Backoff
    from outrider_edge.link.link import Connector, Link
    from outrider_edge.link.padded_link import PaddedStreams
    from outrider_edge.session.events import Totals
    from outrider_edge.session.uplink import Uplink

# How long an orderly end may take.
_PART_S = 0.5
# Finest that clocks are compared: a wait of what rounding leaves would be none.
_TICK_S = 0.001


@dataclass(frozen=True, slots=True)
class Liveness:
    """How often the cloud is asked for a sign of life, and when it counts as dead.

    Attributes:
        probe_s: Between pings.
        dead_s: Silence that breaks the stream. Well above what a retransmission over a bad radio takes.
    """

    probe_s: float = 0.4
    dead_s: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.probe_s < self.dead_s:
            raise ConfigError(f"liveness probe {self.probe_s} s, dead after {self.dead_s} s", hint="0 < probe < dead")


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream is open: `Open` must be the next message sent."""

    peer: str


@dataclass(frozen=True, slots=True)
class Broken:
    """The stream ended, or none could be opened; the next try comes after `wait_s`, if the error is one to retry."""

    error: OutriderError
    wait_s: float


Item = Connected | Broken | pb.DecodeResponse


class Line:
    """The way to the cloud for one session.

    Args:
        connector: Opens streams.
        backoff: How long to wait between tries.
        liveness: When silence is death.
        totals: Where bytes are counted, with framing.
        padded: Pads streams; None leaves them as they are.

    Attributes:
        inbox: What happened, oldest first, each with its time (loop clock, seconds).
        heard_at: When the cloud was last heard of (any message but an error); the start at first.
        pings: Round trips of pings, seconds, oldest first, each with when it was sent (loop clock) and whether it went
            right behind an opening; the conductor takes them.
        uplink: Where the conductor wants the books kept of what is sent; None keeps none. What pads is not told by
            messages.
    """

    def __init__(
        self,
        connector: Connector,
        backoff: Backoff,
        liveness: Liveness,
        totals: Totals,
        padded: PaddedStreams | None = None,
    ) -> None:
        self._connector, self._backoff, self._liveness = connector, backoff, liveness
        self._padded = padded
        self.inbox: deque[tuple[float, Item]] = deque()
        self.heard_at = 0.0
        self._totals = totals
        self.pings: deque[tuple[float, float, bool]] = deque(maxlen=8)
        self.uplink: Uplink | None = None
        self._arrived = asyncio.Event()
        self._outbox: asyncio.Queue[pb.DecodeRequest | None] = asyncio.Queue()
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._receiver: asyncio.Task[None] | None = None
        self._sender: asyncio.Task[None]
        self._progress = self._complete = self._closing = False
        self._pinged_at: dict[int, tuple[float, bool]] = {}
        self._pings = 0
        self._opening = False

    @property
    def failure(self) -> BaseException | None:
        """A fault of ours that ended the line; None while it lives."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    @property
    def where(self) -> str:
        """Where the cloud is looked for."""
        return self._connector.where

    def start(self) -> None:
        """Begin to connect."""
        self.heard_at = asyncio.get_running_loop().time()
        self._task = asyncio.ensure_future(self._run())
        self._task.add_done_callback(lambda _: self._arrived.set())

    def send(self, message: pb.DecodeRequest) -> None:
        """Queue a message for the stream at hand; without one it is lost, as on a wire."""
        if self._padded is None:
            size = message.ByteSize() + FRAME_BYTES
            self._totals.uplink_bytes += size
            if self.uplink is not None:
                self.uplink.note_sent(asyncio.get_running_loop().time(), size)
        self._outbox.put_nowait(message)
        if message.HasField("open"):
            self._opening = self._padded is None
            self._asked.set()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Until something is in the inbox, or `timeout_s` has passed."""
        if self.inbox or self.failure is not None:
            return
        self._arrived.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return

    async def stop(self, last: pb.DecodeRequest | None = None, *, wait: bool = True) -> None:
        """End in order, after a last message: the cloud would keep the session of a cut stream for its return.

        Behind the last commit nothing is waited for but that the cloud is told; it ends the stream when it is. A padded
        stream goes on until both sides have said that they have.

        Args:
            last: What is said at the end.
            wait: Give the cloud a moment to take leave; one that is away does not come back for that.
        """
        self._closing = True
        receiver = self._receiver
        if wait and receiver is not None and not receiver.done():
            if last is not None:
                self.send(last)
            self._outbox.put_nowait(None)
            told = self._complete and self._padded is None
            await asyncio.wait([self._sender if told else receiver], timeout=_PART_S)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        failures = 0
        while not self._complete:
            self._progress = False
            try:
                await self._stream(await self._connector.connect())
            except OutriderError as error:
                if self._closing or self._complete:
                    return
                failures = 1 if self._progress else failures + 1
                again = error.retryable or isinstance(error, SessionExistsError)
                wait_s = self._backoff.wait_s(failures) if again else 0.0
                self._put(Broken(error, wait_s))
                if not again:
                    return
                await asyncio.sleep(wait_s)

    async def _stream(self, link: Link) -> None:
        """One stream, to its end."""
        if self._padded is not None:
            link = self._padded.over(link, self._totals)
        self._outbox, self._asked = asyncio.Queue(), asyncio.Event()
        self._put(Connected(link.peer))
        self._sender = asyncio.ensure_future(self._transmit(link))
        self._receiver = asyncio.ensure_future(self._receive(link))
        tasks = [self._receiver, self._sender, asyncio.ensure_future(self._watch(link))]
        try:
            await asyncio.wait([tasks[0], tasks[2]], return_when=asyncio.FIRST_COMPLETED)
            for task in (tasks[0], tasks[2]):
                if task.done():
                    task.result()
        except OutriderError as error:
            if error.retryable and not self._closing and not self._complete:
                self._connector.note(link.peer, alive=False)
            raise
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:  # whoever stops the line cancels this wait, too
                await link.close()

    async def _receive(self, link: Link) -> None:
        clock = asyncio.get_running_loop().time
        first = True
        while (message := await link.receive()) is not None:
            if self._padded is None:
                self._totals.downlink_bytes += message.ByteSize() + FRAME_BYTES
            kind = message.WhichOneof("body")
            if kind == "error":
                # The status of the transport says less, and comes later.
                raise error_from_wire(message.error)
            self.heard_at = clock()
            if first:
                self._connector.note(link.peer, alive=True)
                first = False
            if kind == "pong":
                sent = self._pinged_at.pop(message.pong.number, None)
                if sent is not None:
                    self.pings.append((clock() - sent[0], *sent))
                    if sent[1]:  # the next one does not go behind the opening: the two tell the link's rate
                        self._ping(clock())
                self._arrived.set()
            else:
                self._progress = self._progress or kind == "commit"
                self._complete = self._complete or bool(message.commit.finish)
                self._put(message)
        if not self._closing and not self._complete:
            raise UnavailableError("the cloud ended the stream before the answer was complete")

    async def _transmit(self, link: Link) -> None:
        try:
            while (message := await self._outbox.get()) is not None:
                await link.send(message)
            await link.half_close()
        except OutriderError:
            # The receiver learns the reason of a broken stream, and what the cloud said before it broke.
            return

    async def _watch(self, link: Link) -> None:
        """Ask for signs of life, and give up on a dead cloud."""
        # The first message is the session's own; it comes late on a busy device.
        await self._asked.wait()
        clock = asyncio.get_running_loop().time
        opened_at, limits = clock(), self._liveness
        while True:
            heard_at = max(opened_at, self.heard_at)
            silent_s = clock() - heard_at
            if silent_s >= limits.dead_s:
                raise UnavailableError(f"nothing was heard of {link.peer} for {silent_s:.1f} s")
            self._ping(clock())
            await asyncio.sleep(max(_TICK_S, min(limits.probe_s, limits.dead_s - silent_s)))

    def _ping(self, now: float) -> None:
        self._pings += 1
        self._pinged_at = {number: at for number, at in self._pinged_at.items() if now - at[0] < self._liveness.dead_s}
        self.send(pb.DecodeRequest(ping=pb.Ping(number=self._pings)))
        self._pinged_at[self._pings] = asyncio.get_running_loop().time(), self._opening
        self._opening = False

    def _put(self, item: Item) -> None:
        self.inbox.append((asyncio.get_running_loop().time(), item))
        self._arrived.set()
