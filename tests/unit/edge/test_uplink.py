"""The books of what a device sent: how long a byte takes, and until when the way up is busy."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.session.departure import Departures
from outrider_edge.session.estimates import Estimates
from outrider_edge.session.uplink import Uplink


def sessions(uplink, byte_s, rtt_s, count=3, drafts=(), jitter_s=0.0, at=0.0):
    """Answers over a link of that rate: an opening of 280 bytes, a ping behind it, drafts, a ping when that is back.

    Args:
        drafts: (seconds after the opening, bytes).
    """
    free_at, noise = at, random.Random(7)

    def ping(sent_at, opening):
        taken_s = max(0.0, free_at - sent_at) + rtt_s + jitter_s * noise.random()
        return taken_s, uplink.note_ping(taken_s, sent_at, opening=opening)

    for _ in range(count):
        uplink.note_sent(at, 280)
        free_at = max(free_at, at) + 280 * byte_s
        behind_s, alone_s = ping(at, opening=True)
        assert alone_s is None
        for later_s, size in drafts:
            if later_s < behind_s:
                uplink.note_sent(at + later_s, size)
                free_at = max(free_at, at + later_s) + size * byte_s
        _, alone_s = ping(at + behind_s, opening=False)
        at += 3.0
    return alone_s


@pytest.mark.parametrize("byte_s", [5e-4, 1.25e-4, 2e-5])
@pytest.mark.parametrize("rtt_s", [0.01, 0.05, 0.2])
def test_the_rate_is_told_by_the_ping_behind_the_opening(byte_s, rtt_s):
    """To a sixth, rather too wide than too narrow, and the round trip without what the ping waited behind."""
    uplink = Uplink()
    alone_s = sessions(uplink, byte_s, rtt_s)
    assert 0.84 * byte_s <= uplink.byte_s <= 1.02 * byte_s
    assert alone_s == pytest.approx(rtt_s, abs=0.002)


def test_a_queue_of_drafts_is_not_taken_for_distance():
    """The second ping waits behind as much as the first did: the round trip is 10 ms all the same, not 0.15 s."""
    uplink = Uplink()
    idle = [(0.001 * n, 60) for n in range(1, 6)]
    sessions(uplink, 5e-4, 0.01, count=2)
    alone_s = sessions(uplink, 5e-4, 0.01, count=3, drafts=idle, at=20.0)
    assert uplink.byte_s == pytest.approx(5e-4, rel=0.1)
    assert alone_s == pytest.approx(0.01, abs=0.04)


def test_jitter_is_not_taken_for_a_narrow_link():
    """Round trips of 50 to 90 ms over a link where bytes take no time: no rate explains them."""
    uplink = Uplink()
    sessions(uplink, 0.0, 0.05, count=8, jitter_s=0.04)
    assert uplink.byte_s == 0.0


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 400)), max_size=20), st.floats(0, 1), st.floats(0, 1e-2))
def test_what_a_ping_came_back_from_behind_is_not_waited_for(sent, rtt_s, byte_s):
    """However slow the books say that the link is: only what was sent after the ping may be under way."""
    uplink = Uplink(byte_s)
    for at, count in sorted(sent):
        uplink.note_sent(at, count)
    uplink.note_ping(rtt_s, 2.5)
    later = [count for at, count in sent if at > 2.5]
    assert uplink.free_at <= max([2.5, *(at for at, _ in sent)]) + sum(later) * byte_s + 1e-9


def test_nothing_leaves_while_the_way_up_is_busy():
    """100 bytes at 2,000 bytes/s occupy it for 50 ms, whether the cloud is near or unknown."""
    for known in (Estimates(), Estimates(rtt_s=0.001, step_s=0.02)):
        known.uplink = Uplink(5e-4)
        departures = Departures(known)
        departures.note_open(0.0)
        known.uplink.note_sent(1.0, 100)
        assert departures.leave_at(1.001, 1.001) == pytest.approx(1.05, abs=0.003)
        assert departures.leave_at(1.001, 1.051) is None


def test_nodes_for_a_far_cloud_wait_for_the_step_or_the_way_up_whichever_is_later():
    known = Estimates(rtt_s=0.05, step_s=0.02, uplink=Uplink(5e-4))
    departures = Departures(known)
    departures.note_open(0.0)
    free = departures.leave_at(0.001, 0.001)
    known.uplink.note_sent(0.0, 20)
    assert departures.leave_at(0.001, 0.001) == free
    known.uplink.note_sent(0.0, 60)
    assert departures.leave_at(0.001, 0.001) == pytest.approx(0.04, abs=0.003)
