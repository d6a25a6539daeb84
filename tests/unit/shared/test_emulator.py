"""The emulated link's timing under a clock that the test turns."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.addresses import split_address
from outrider_shared.emulator import Fault, FaultKind, FaultSchedule, LinkPlan, LinkProfile
from outrider_shared.emulator.shaper import SEGMENT_BYTES, Shaper
from outrider_shared.errors import ConfigError

RTT_100 = LinkProfile(rtt_s=0.1)


def shaper(seed: int = 0, connection: int = 0, **more) -> Shaper:
    return Shaper(seed, connection, **{"up": True, **more})


def arrivals(way: Shaper) -> list[tuple[float, bytes]]:
    """(time, bytes) of all that is on its way, with the clock going from one due time to the next."""
    seen = []
    while (due := way.next_due()) is not None and due < math.inf:
        assert way.pop(due - 1e-9) == []
        seen += [(due, data) for data in way.pop(due)]
    return seen


def test_bytes_take_half_the_round_trip():
    """One direction adds half the RTT, and the end of the stream travels behind the bytes."""
    way = shaper()
    way.push(b"abc", 1.0, RTT_100)
    way.push(b"", 1.01, RTT_100)
    assert arrivals(way) == [(pytest.approx(1.05), b"abc"), (pytest.approx(1.06), b"")]


def test_nothing_leaves_before_the_handshake():
    """Bytes of a connection that has just been made wait for its round trip."""
    way = shaper(opens=2.1)
    way.push(b"abc", 2.0, RTT_100)
    assert way.next_due() == pytest.approx(2.15)


def test_rate_binds_beyond_the_burst():
    """A token bucket: an idle direction sends its burst at once, then bytes at the rate; idling fills it again."""
    profile = LinkProfile(up_bps=80_000, burst_bytes=1000)
    way = shaper()
    for now, due in ((0.0, 0.0), (0.0, 0.1), (0.0, 0.2), (10.0, 10.0), (10.0, 10.1)):
        way.push(bytes(1000), now, profile)
        assert [time for time, _ in arrivals(way)] == [pytest.approx(due)]


def test_directions_have_their_own_rates():
    """Up and down are limited apart."""
    profile = LinkProfile(up_bps=80_000, burst_bytes=1)
    way = shaper(up=False)
    way.push(bytes(1000), 0.0, profile)
    assert way.next_due() == 0.0


def test_jitter_is_bounded_and_never_reorders():
    """Delays spread by half the jitter either way; a segment that would overtake waits."""
    profile = LinkProfile(rtt_s=0.1, jitter_s=0.04)
    way = shaper()
    for i in range(500):
        way.push(bytes([i % 256]), i * 0.2, profile)
    alone = arrivals(way)
    delays = [time - i * 0.2 for i, (time, _) in enumerate(alone)]
    assert min(delays) >= 0.03 - 1e-9
    assert max(delays) <= 0.07 + 1e-9
    assert max(delays) - min(delays) > 0.03
    for i in range(100):
        way.push(bytes([i]), 200 + i * 0.001, profile)
    assert [data[0] for _, data in arrivals(way)] == list(range(100))


def lossy_seed() -> int:
    """A seed whose first segment is lost once and whose next ten are not, at 10 % loss."""
    for seed in range(10_000):
        source, chances = shaper(seed)._random, []
        for _ in range(11):
            source.uniform(-0.5, 0.5)
            chances.append(source.random())
        if 0.01 <= chances[0] < 0.1 and min(chances[1:]) >= 0.1:
            return seed
    raise AssertionError("no such seed")


LOSSY = LinkProfile(rtt_s=0.1, loss=0.1)


def test_lone_lost_segment_comes_after_the_timeout():
    """With nothing behind it, only the retransmission timeout (RTT + 200 ms) brings a lost segment."""
    way = shaper(lossy_seed())
    way.push(b"x", 0.0, LOSSY)
    assert way.next_due() == pytest.approx(0.05 + 0.3)


def test_three_later_segments_bring_a_fast_retransmission():
    """The third arrival behind a hole tells the sender, a round trip later the hole is filled, and all come at once."""
    way = shaper(lossy_seed())
    for i in range(5):
        way.push(bytes([i]), i * 0.01, LOSSY)
    assert arrivals(way) == [(pytest.approx(0.03 + 0.05 + 0.1), bytes([i])) for i in range(5)]


def test_lost_segment_holds_up_what_is_behind_it():
    """Head-of-line blocking: later bytes wait for the hole."""
    way = shaper(lossy_seed())
    way.push(b"a", 0.0, LOSSY)
    way.push(b"b", 0.001, LOSSY)
    assert arrivals(way) == [(pytest.approx(0.35), b"a"), (pytest.approx(0.35), b"b")]


@pytest.mark.parametrize("loss", [0.01, 0.05, 0.1, 0.5])
def test_loss_has_its_rate_and_repeats_double_the_timeout(loss):
    """The part of lost segments is what was asked for; lost retransmissions double the timeout."""
    profile = LinkProfile(loss=loss)
    late = []
    for seed in range(4000):
        way = shaper(seed)
        way.push(b"x", 0.0, profile)
        late.append(round(way.next_due() / profile.rto_s))
    lost = sum(1 for n in late if n)
    assert abs(lost / 4000 - loss) < 4 * math.sqrt(loss * (1 - loss) / 4000)
    assert set(late) <= {0, 1, 3, 7, 15, 31, 63}
    twice = sum(1 for n in late if n > 1)
    assert abs(twice / 4000 - loss**2) < 4 * math.sqrt(loss**2 / 4000)


def test_total_loss_delivers_nothing_until_the_link_is_back():
    """At 100 % nothing arrives; when the link recovers, what waited comes after a timeout, in order."""
    way = shaper()
    way.push(b"a", 0.0, LinkProfile(loss=1.0))
    way.push(b"b", 0.5, LinkProfile(loss=1.0))
    assert way.next_due() == math.inf
    assert way.pop(1e9) == []
    way.profile_changed(3.0, RTT_100)
    way.push(b"c", 3.0, RTT_100)
    assert [data for _, data in arrivals(way)] == [b"a", b"b", b"c"]
    assert way.waiting_bytes == 0


def test_stall_holds_everything_and_then_lets_go():
    """During a stall nothing is delivered; at its end all that waited comes at once."""
    way = shaper()
    way.stall(1.0)
    for i in range(3):
        way.push(bytes([i]), i * 0.1, RTT_100)
    assert arrivals(way) == [(1.0, bytes([i])) for i in range(3)]


PROFILES = st.builds(
    LinkProfile,
    rtt_s=st.floats(0, 0.3),
    jitter_s=st.floats(0, 0.1),
    up_bps=st.sampled_from([0.0, 64_000.0, 1e6]),
    loss=st.floats(0, 0.5),
)
CHUNKS = st.lists(st.tuples(st.floats(0, 0.2), st.integers(1, 4000)), min_size=1, max_size=30)


@given(PROFILES, CHUNKS, st.integers(0, 1000))
def test_every_byte_arrives_once_in_order_and_not_too_early(profile, chunks, seed):
    """Whatever the link: the same bytes come out, in order, not before the least delay, and again for the same seed."""

    def play():
        way, now, sent = shaper(seed), 0.0, b""
        for gap, size in chunks:
            now += gap
            data = bytes((len(sent) + i) % 251 for i in range(size))
            way.push(data, now, profile)
            sent += data
        assert way.waiting_bytes == len(sent)
        return sent, now, arrivals(way)

    sent, last, seen = play()
    assert b"".join(data for _, data in seen) == sent
    assert all(len(data) <= SEGMENT_BYTES for _, data in seen)
    assert [time for time, _ in seen] == sorted(time for time, _ in seen)
    assert seen[0][0] >= chunks[0][0] + max(0.0, profile.one_way_s - profile.jitter_s / 2) - 1e-9
    if profile.loss == 0:
        queued = len(sent) * 8 / profile.up_bps if profile.up_bps else 0.0
        assert seen[-1][0] <= last + queued + profile.one_way_s + profile.jitter_s / 2 + 1e-6
    assert play()[2] == seen


def test_randomness_depends_on_seed_connection_and_direction_alone():
    """Equal names, equal delays; any other name, other delays; other connections in between change nothing."""
    profile = LinkProfile(rtt_s=0.1, jitter_s=0.05)

    def delays(**name):
        way = shaper(**name)
        for i in range(8):
            way.push(b"x", float(i), profile)
        return [time for time, _ in arrivals(way)]

    base = delays(seed=1, connection=2)
    assert delays(seed=1, connection=2) == base
    assert delays(seed=2, connection=2) != base
    assert delays(seed=1, connection=3) != base
    assert delays(seed=1, connection=2, up=False) != base


def test_plan_tells_the_profile_of_each_second():
    """Changes build on each other, and hold from their second on."""
    plan = LinkPlan.of(LinkProfile(rtt_s=0.01, loss=0.1), {2.0: {"rtt_s": 0.15}, 5.0: {"rtt_s": 0.01}})
    assert [plan.at(t).rtt_s for t in (0, 1.99, 2.0, 4.9, 5.0, 100)] == [0.01, 0.01, 0.15, 0.15, 0.01, 0.01]
    assert plan.at(3).loss == 0.1
    assert plan.changes == [2.0, 5.0]


@pytest.mark.parametrize(
    ("field", "value"),
    [("rtt_s", -1), ("rtt_s", math.nan), ("jitter_s", math.inf), ("loss", 1.1), ("half_open", -0.1), ("up_bps", -1),
     ("burst_bytes", 0), ("queue_bytes", 0), ("rto_min_s", -1), ("cut_every_s", -1)],
)  # fmt: skip
def test_profiles_out_of_range_are_refused(field, value):
    """The message names the field and its value."""
    with pytest.raises(ConfigError, match=field):
        LinkProfile(**{field: value})


def test_changes_of_unknown_or_unfit_fields_are_refused():
    """A misspelt field or a text for a number is an error, not ignored."""
    with pytest.raises(ConfigError, match="rtt_ms"):
        LinkProfile().changed({"rtt_ms": 5})
    with pytest.raises(ConfigError, match="no number"):
        LinkProfile().changed({"rtt_s": "5"})


@pytest.mark.parametrize("stages", [(), ((1.0, LinkProfile()),), ((0.0, LinkProfile()), (0.0, LinkProfile()))])
def test_plans_without_order_are_refused(stages):
    """Stages begin at 0 and ascend."""
    with pytest.raises(ConfigError):
        LinkPlan(stages)


def test_fault_schedules_are_drawn_reproducibly_and_in_order():
    """The same seed gives the same faults, sorted, within the span, with durations only for those that last."""
    schedule = FaultSchedule.draw(7, 50, 10.0)
    assert schedule == FaultSchedule.draw(7, 50, 10.0)
    assert schedule != FaultSchedule.draw(8, 50, 10.0)
    assert {fault.kind for fault in schedule} == set(FaultKind)
    assert all(0 <= fault.at_s <= 10 for fault in schedule)
    for fault in schedule:
        lasting = fault.kind in {FaultKind.STALL, FaultKind.REFUSE}
        assert (0.03 <= fault.duration_s <= 0.3) if lasting else fault.duration_s == 0


def test_faults_out_of_range_or_order_are_refused():
    """Negative times, a cut that lasts, a stall that does not, and a schedule out of order."""
    for fault in ((-1.0, FaultKind.CUT), (0.0, FaultKind.CUT, 1.0), (0.0, FaultKind.STALL)):
        with pytest.raises(ConfigError):
            Fault(*fault)
    with pytest.raises(ConfigError, match="order"):
        FaultSchedule((Fault(2.0, FaultKind.CUT), Fault(1.0, FaultKind.CUT)))


@pytest.mark.parametrize("address", ["nowhere", ":80", "host:port", "host:99999", ""])
def test_addresses_that_are_none_are_refused(address):
    """HOST:PORT or an error that shows what came."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_address(address)
