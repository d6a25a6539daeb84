"""Draft length follows the link: in virtual time, against fixed settings, and after the link has changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.bench import methods
from outrider_edge.session.control import Control
from outrider_edge.session.estimates import Estimates
from outrider_edge.session.events import Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_edge.session.uplink import Uplink
from outrider_edge.session.worth import MOST, crowding, floors, per_message
from outrider_shared.emulator.profile import LinkProfile
from support.virtual import Scenario, StepCost, simulate

FIXED = [
    DraftPolicy(adaptive=False),
    DraftPolicy(depth=16, adaptive=False),
    DraftPolicy(depth=64, bursts_ahead=0, adaptive=False),
    DraftPolicy(depth=64, stop_survival=0.2, sibling_survival=0.2, bursts_ahead=0, adaptive=False),
    DraftPolicy(depth=4, stop_survival=0.4, bursts_ahead=1, adaptive=False),
    DraftPolicy(stop_survival=0.3, ahead_survival=0.1, bursts_ahead=1, adaptive=False),
]


def rate(policy: DraftPolicy, rtt_s: float, step_s: float, bps: float = 0.0, draft_s: float = 0.0015, **more) -> dict:
    link = LinkProfile(rtt_s, 0.0, bps, bps)
    method = methods.Method("tried", Pace.AUTO, policy=policy)
    return simulate(Scenario(method, link, StepCost(step_s), draft_s, **{"answers": 4, **more}))


RTTS = (0, 10, 25, 50, 100, 200)
GRID = [
    *((rtt, step, 0, 1.5) for step in (10, 25, 50) for rtt in RTTS),
    *((rtt, step, 0, 8) for step, rtt in ((10, 10), (25, 25), (50, 0), (50, 25))),
    *((rtt, 25, kbit, 1.5) for kbit in (64, 16) for rtt in RTTS),
    *((rtt, step, 64, 1.5) for step in (10, 50) for rtt in (0, 50)),
    *((rtt, 25, 256, 1.5) for rtt in (0, 50)),
]


@pytest.mark.parametrize(("rtt_ms", "step_ms", "kbit", "pass_ms"), GRID)
def test_automatic_drafts_are_within_five_percent_of_the_best_fixed_setting(rtt_ms, step_ms, kbit, pass_ms):
    """Near and far, quick and slow, wide and narrow: no fixed setting is much better."""
    where = (rtt_ms / 1e3, step_ms / 1e3, kbit * 1e3, pass_ms / 1e3)
    best = max(rate(policy, *where, answers=3)["tokens_per_s"] for policy in FIXED)
    assert rate(DraftPolicy(), *where, answers=3)["tokens_per_s"] >= 0.95 * best


def test_answers_are_as_fast_as_on_a_link_that_never_changed_a_second_after_it_did():
    """10 -> 150 -> 10 ms: whole answers from one second after each change on take what they take on a steady link."""
    plan = ((0.0, 0.01), (2.0, 0.15), (7.0, 0.01))
    more = {"answers": 60, "max_tokens": 48}
    steady = {rtt: walls(rate(DraftPolicy(), rtt, 0.025, **more)) for rtt in (0.01, 0.15)}
    changes = tuple((at, LinkProfile(rtt)) for at, rtt in plan[1:])
    seen = walls(rate(DraftPolicy(), 0.01, 0.025, changes=changes, **more))
    ends = [at for at, _ in plan[1:]] + [float("inf")]
    for (begins, rtt), ends_at in zip(plan, ends, strict=True):
        inside = [n for n, (at, wall) in seen.items() if at >= begins + 1.0 and at + wall <= ends_at]
        assert len(inside) >= 5
        taken, expected = (sum(of[n][1] for n in inside) for of in (seen, steady[rtt]))
        assert taken <= 1.05 * expected, (rtt, taken, expected)


def walls(figures) -> dict[int, tuple[float, float]]:
    """Per answer: when it began, and how long it took."""
    began = figures["answers"][0].started
    return {n: (a.started - began, a.times[-1][0]) for n, a in enumerate(figures["answers"])}


def believed(changes):
    """The round trip as believed over time, with a ping every 0.4 s over a link that changes."""
    control, now, seen, arrivals = Control(DraftPolicy()), 0.0, [], []
    while now < 12.0:
        rtt_s = next(rtt for at, rtt in reversed(changes) if now >= at)
        arrivals.append((now + rtt_s, rtt_s))
        now += 0.4
    for at, rtt_s in sorted(arrivals):
        control.note_ping(rtt_s)
        seen.append((at, control.known.rtt_s))
    return seen


def test_the_round_trip_is_known_again_within_a_second_after_the_link_changed():
    """10 -> 150 -> 10 ms: one second after each change, the estimate is that of the new link."""
    for at, rtt_s in believed([(0.0, 0.01), (4.0, 0.15), (8.0, 0.01)]):
        if 1.0 <= at < 4.0 or at >= 9.0:
            assert rtt_s == pytest.approx(0.01, abs=0.01)
        elif 5.0 <= at < 8.0:
            assert rtt_s == pytest.approx(0.15, rel=0.05)


def test_the_text_does_not_depend_on_the_link_that_is_followed():
    """A link that goes 10 -> 150 -> 10 ms in the middle of answers changes speed, not text."""
    changes = ((0.4, LinkProfile(0.15)), (2.0, LinkProfile(0.01)))
    changed = rate(DraftPolicy(), 0.01, 0.025, changes=changes)
    assert changed["texts"] == rate(DraftPolicy(), 0.01, 0.025)["texts"]


@given(st.floats(0, 5), st.floats(0, 1), st.floats(1e-3, 2), st.integers(0, 999), st.integers(0, 256))
def test_bounds_hold_for_any_link_drafter_and_cloud(rtt_s, pass_s, step_s, tokens, pending):
    """Whatever is measured: floors are probabilities, leave room for the likeliest draft, and are in order."""
    control = Control(DraftPolicy(), held=pending % 2 == 0)
    for _ in range(3):
        control.note_pass(pass_s)
    control.note_ping(rtt_s)
    control.known.step_s = step_s
    for number in range(3):
        control.note_commit(number * step_s, tokens)
    policy = control.policy(crowding(pending, 16, 256))
    assert 0.0 < policy.sibling_survival <= policy.ahead_survival <= policy.stop_survival <= MOST
    assert 0.004 <= policy.coalesce_s <= 0.012


def test_what_costs_more_has_to_bring_more():
    """A narrow link, scarce rows and a slow drafter each raise the floors; a wide link and free rows do not."""

    def least(byte_s=0.0, place=0.0, pass_s=0.001, *, held=False):
        return floors(Estimates(pass_s=pass_s, step_s=0.02, uplink=Uplink(byte_s)), place, held=held)

    free = least()
    assert least(byte_s=0.0005).node > free.node
    assert least(place=crowding(8, 16, 256)).node > free.node
    assert least(pass_s=0.008).awaited > free.awaited
    assert least(pass_s=0.008, held=True).awaited > least(pass_s=0.008).awaited
    assert crowding(200, 256, 256) == 0.0


def test_messages_are_cut_where_bytes_take_long():
    """Half a step's worth, and never so few nodes that a message is mostly what comes before them."""

    def most(byte_s, step_s=0.02):
        return per_message(Estimates(step_s=step_s, uplink=Uplink(byte_s)), 64)

    assert most(0.0) == most(1e-6) == 64
    assert 16 < most(1.25e-4, 0.02) < most(1.25e-4, 0.03) < 64
    assert most(5e-4) == most(5e-3) == 16


def test_fixed_policies_stay_fixed():
    control = Control(DraftPolicy(adaptive=False))
    for _ in range(3):
        control.note_pass(0.001)
    control.note_ping(0.2)
    assert control.policy() is control._base
