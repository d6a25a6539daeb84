"""One emulated connection: a client, a server, and a shaped way in each direction.

    client --socket--> Side --received--> Way (Shaper, timer) --write--> Side --socket--> server      and back alike

An end of stream travels behind its bytes. A reset passes on at once, and takes what was on its way with it.
"""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING, Protocol

from outrider_shared.emulator.frames import FrameReader
from outrider_shared.emulator.records import RecordReader
from outrider_shared.emulator.shaper import Shaper
from outrider_shared.emulator.side import Side

if TYPE_CHECKING:
    from outrider_shared.emulator.frames import FrameTallies
    from outrider_shared.emulator.profile import LinkProfile
    from outrider_shared.emulator.records import Heard

_CONNECT_S = 5.0


class Owner(Protocol):
    """What a connection needs of its proxy."""

    seed: int

    @property
    def profile(self) -> LinkProfile:
        """What holds now."""

    @property
    def frames(self) -> FrameTallies:
        """Where HTTP/2 frames are counted."""

    @property
    def heard(self) -> list[Heard] | None:
        """Where TLS records are put; None where nobody listens."""

    def count(self, *, up: bool, taken: int = 0, delivered: int = 0) -> None:
        """Bytes were taken from a sender or delivered to a receiver."""

    def left(self, connection: Connection, *, cut: bool) -> None:
        """A connection has ended."""


class Way:
    """One direction."""

    def __init__(self, owner: Owner, shaper: Shaper, source: Side, sink: Side, *, up: bool) -> None:
        self._owner, self._shaper, self._source, self._sink, self._up = owner, shaper, source, sink, up
        self.frames = FrameReader(owner.frames.up if up else owner.frames.down, preface=up)
        self._records = RecordReader(owner.heard, up=up)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self.stopped = False

    def push(self, data: bytes) -> None:
        """Take bytes of the source."""
        self._owner.count(up=self._up, taken=len(data))
        self.frames.feed(data)
        self._records.feed(data, self._loop.time())
        if self.stopped:
            return
        now, profile = self._loop.time(), self._owner.profile
        self._shaper.push(data, now, profile)
        if self._shaper.waiting_bytes > profile.queue_bytes:
            self._source.pause(paused=True)
        self.flush()

    def flush(self) -> None:
        """Deliver what is due, and set the timer for the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.stopped or self._sink.transport is None or self._sink.full:
            return
        for data in self._shaper.pop(self._loop.time()):
            self._sink.write(data)
            self._owner.count(up=self._up, delivered=len(data))
        if self._shaper.waiting_bytes <= self._owner.profile.queue_bytes // 2:
            self._source.pause(paused=False)
        due = self._shaper.next_due()
        if due is not None and due != math.inf:
            self._timer = self._loop.call_at(due, self.flush)

    def profile_changed(self) -> None:
        """The link is another now."""
        self._shaper.profile_changed(self._loop.time(), self._owner.profile)
        self.flush()

    def stall(self, until: float) -> None:
        """Deliver nothing before."""
        self._shaper.stall(until)
        self.flush()

    def stop(self) -> None:
        """Deliver nothing any more; what comes is dropped."""
        self.stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._source.pause(paused=False)


class Connection:
    """Both ways between a client and a server.

    Args:
        owner: The proxy.
        number: From 0, in the order of arrival; with the owner's seed it fixes all random numbers.
        to: Host and port of the server.
        refused: Reset the client at once.
    """

    def __init__(self, owner: Owner, number: int, to: tuple[str, int], *, refused: bool) -> None:
        self._owner, self._to, self._refused = owner, to, refused
        self._loop = asyncio.get_running_loop()
        self.client, self.server = Side(self), Side(self)
        now, rtt_s = self._loop.time(), owner.profile.rtt_s
        up = Shaper(owner.seed, number, up=True, opens=now + rtt_s)
        down = Shaper(owner.seed, number, up=False, opens=now + 1.5 * rtt_s)
        self._up = Way(owner, up, self.client, self.server, up=True)
        self._down = Way(owner, down, self.server, self.client, up=False)
        self._random = random.Random(f"{owner.seed}:{number}:life")  # noqa: S311 - reproducible, not secret
        self._swallowing = self._ended = False
        self._life: asyncio.TimerHandle | None = None
        self._dial: asyncio.Task[None] | None = None

    def opened(self, side: Side) -> None:
        """A socket is there; the client's is first."""
        if side is self.server:
            self.flush()
        elif self._refused:
            self.cut()
        else:
            self._dial = self._loop.create_task(self._reach())
            self._set_life()

    def received(self, side: Side, data: bytes) -> None:
        """Bytes from one side; b"" is its end."""
        way = self._up if side is self.client else self._down
        if way is self._down and self._up.frames.opaque:
            self._down.frames.opaque = True
        way.push(data)
        self._close_if_finished()

    def lost(self, *, reset: bool) -> None:
        """A side is gone."""
        if reset and not self._swallowing:
            self.cut(counted=False)
        elif self.client.transport is None and self.server.transport is None:
            self._end(cut=False)

    def flush(self) -> None:
        """Deliver what is due, both ways."""
        for way in (self._up, self._down):
            way.flush()
        self._close_if_finished()

    def profile_changed(self) -> None:
        """The link is another now."""
        for way in (self._up, self._down):
            way.profile_changed()

    def stall(self, until: float) -> None:
        """Deliver nothing before."""
        for way in (self._up, self._down):
            way.stall(until)

    def swallow(self) -> None:
        """Keep the sockets, drop all that is on its way and all that comes."""
        self._swallowing = True
        for way in (self._up, self._down):
            way.stop()

    def cut(self, *, counted: bool = True) -> None:
        """Reset both sides."""
        for way in (self._up, self._down):
            way.stop()
        for side in (self.client, self.server):
            side.end(reset=True)
        self._end(cut=counted)

    def _set_life(self) -> None:
        length, chance, profile = self._random.uniform(0.5, 1.5), self._random.random(), self._owner.profile
        if profile.cut_every_s:
            end = self.swallow if chance < profile.half_open else self.cut
            self._life = self._loop.call_later(length * profile.cut_every_s, end)

    async def _reach(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                await self._loop.create_connection(lambda: self.server, *self._to)
        except (OSError, TimeoutError):
            self.cut(counted=False)
        if self._ended:
            self.server.end(reset=True)

    def _close_if_finished(self) -> None:
        if self.client.finished and self.server.finished:
            for side in (self.client, self.server):
                side.end(reset=False)

    def _end(self, *, cut: bool) -> None:
        if not self._ended:
            self._ended = True
            for waiting in (self._life, self._dial):
                if waiting is not None:
                    waiting.cancel()
            self._owner.left(self, cut=cut)
