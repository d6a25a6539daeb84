"""What a line takes for the end of an answer, and what for a broken stream."""

from __future__ import annotations

import asyncio

import pytest

from outrider_edge.link.backoff import Backoff
from outrider_edge.session.events import Totals
from outrider_edge.session.line import Broken, Connected, Line, Liveness
from outrider_shared.errors import UnavailableError
from outrider_wire.v1 import verifier_pb2 as pb
from support.virtual.clock import virtual_time

LAST = pb.DecodeResponse(commit=pb.Commit(length=3, finish=pb.FINISH_REASON_LENGTH))
MORE = pb.DecodeResponse(commit=pb.Commit(length=2))


class Stream:
    """A stream that says what it is told to, and then ends, or breaks."""

    peer = "cloud"

    def __init__(self, *said, breaks: bool = False) -> None:
        self._said, self._breaks = list(said), breaks
        self.closed = 0

    async def send(self, message):
        pass

    async def half_close(self):
        pass

    async def receive(self):
        await asyncio.sleep(0.01)
        if self._said:
            return self._said.pop(0)
        if self._breaks:
            raise UnavailableError("Internal error from Core")
        return None

    async def close(self):
        self.closed += 1


class Cloud:
    """Opens one stream after the other."""

    def __init__(self, *streams: Stream) -> None:
        self.streams, self.opened, self.noted = streams, 0, []

    async def connect(self):
        self.opened += 1
        return self.streams[self.opened - 1]

    def note(self, peer, *, alive):
        self.noted.append(alive)


def heard(cloud: Cloud) -> list:
    """What is in the inbox of a line that nobody looks into for a second."""

    async def run():
        line = Line(cloud, Backoff(0.05, 0.05), Liveness(), Totals())
        line.start()
        await asyncio.sleep(1.0)
        assert line.failure is None
        await line.stop()
        return [item for _, item in line.inbox]

    with virtual_time() as loop:
        return loop.run_until_complete(run())


@pytest.mark.parametrize("breaks", [False, True])
def test_however_a_stream_goes_down_behind_the_last_commit_it_was_the_end(breaks):
    """A conductor that is busy has not seen the commit yet; the line must not open another stream meanwhile."""
    stream = Stream(MORE, LAST, breaks=breaks)
    cloud = Cloud(stream)
    assert heard(cloud) == [Connected("cloud"), MORE, LAST]
    assert cloud.noted == [True]
    assert stream.closed == 1


@pytest.mark.parametrize("breaks", [False, True])
def test_a_stream_that_goes_down_before_is_broken_and_another_is_opened(breaks):
    cloud = Cloud(Stream(MORE, breaks=breaks), Stream(LAST))
    first, more, broken, second, last = heard(cloud)
    assert [first, more, second, last] == [Connected("cloud"), MORE, Connected("cloud"), LAST]
    assert isinstance(broken, Broken)
    assert cloud.noted == [True, False, True]
    assert [stream.closed for stream in cloud.streams] == [1, 1]
