"""Draft length follows the link: in virtual time, against fixed settings, and after the link has changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.bench import methods
from outrider_edge.session.control import Control
from outrider_edge.session.events import Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.emulator.profile import LinkProfile
from support.virtual import Scenario, StepCost, simulate

FIXED = [
    DraftPolicy(adaptive=False),
    DraftPolicy(depth=16, adaptive=False),
    DraftPolicy(depth=4, stop_survival=0.4, bursts_ahead=1, adaptive=False),
    DraftPolicy(stop_survival=0.3, bursts_ahead=1, adaptive=False),
]


def rate(policy: DraftPolicy, rtt_s: float, step_s: float, bps: float = 0.0, draft_s: float = 0.0015, **more) -> dict:
    link = LinkProfile(rtt_s, 0.0, bps, bps)
    method = methods.Method("tried", Pace.AUTO, policy=policy)
    return simulate(Scenario(method, link, StepCost(step_s), draft_s, **{"answers": 4, **more}))


@pytest.mark.parametrize(("rtt_ms", "step_ms", "kbit", "pass_ms"), [
    (0, 10, 0, 1.5), (10, 10, 0, 1.5), (50, 10, 0, 1.5), (200, 10, 0, 1.5),
    (0, 25, 0, 1.5), (50, 25, 0, 1.5), (50, 25, 64, 1.5), (0, 25, 0, 8), (50, 25, 0, 8),
])  # fmt: skip
def test_automatic_drafts_are_within_six_percent_of_the_best_fixed_setting(rtt_ms, step_ms, kbit, pass_ms):
    """Near and far, quick and slow, wide and narrow: no fixed setting is much better anywhere."""
    where = (rtt_ms / 1e3, step_ms / 1e3, kbit * 1e3, pass_ms / 1e3)
    best = max(rate(policy, *where)["tokens_per_s"] for policy in FIXED)
    assert rate(DraftPolicy(), *where)["tokens_per_s"] >= 0.94 * best


def estimates(changes):
    """The round trip as believed over time, with a ping every 0.4 s over a link that changes."""
    control, now, believed = Control(DraftPolicy()), 0.0, []
    control.note_pass(0.5)
    control.note_pass(0.0015)
    arrivals = []
    while now < 12.0:
        rtt_s = next(rtt for at, rtt in reversed(changes) if now >= at)
        arrivals.append((now + rtt_s, rtt_s))
        now += 0.4
    for at, rtt_s in sorted(arrivals):
        control.note_ping(rtt_s)
        believed.append((at, control.policy().depth))
    return believed


def test_depth_is_where_it_belongs_within_a_second_after_the_link_changed():
    """10 -> 150 -> 10 ms: one second after each change, the depth is that of the new link."""
    settled = {rtt: estimates([(0.0, rtt)])[-1][1] for rtt in (0.01, 0.15)}
    assert settled[0.01] < settled[0.15]
    for at, depth in estimates([(0.0, 0.01), (4.0, 0.15), (8.0, 0.01)]):
        if 1.0 <= at < 4.0 or at >= 9.0:
            assert depth == settled[0.01]
        elif 5.0 <= at < 8.0:
            assert depth == settled[0.15]


def test_the_text_does_not_depend_on_the_link_that_is_followed():
    """A link that goes 10 -> 150 -> 10 ms in the middle of answers changes speed, not text."""
    changes = ((0.4, LinkProfile(0.15)), (2.0, LinkProfile(0.01)))
    changed = rate(DraftPolicy(), 0.01, 0.025, changes=changes)
    assert changed["texts"] == rate(DraftPolicy(), 0.01, 0.025)["texts"]


@given(st.floats(0, 5), st.floats(0, 1), st.integers(1, 64))
def test_bounds_hold_for_any_link_and_drafter(rtt_s, pass_s, depth):
    """Whatever is measured, a burst stays between a node and twice the base."""
    control = Control(DraftPolicy(depth=depth))
    for _ in range(3):
        control.note_pass(pass_s)
    control.note_ping(rtt_s)
    policy = control.policy()
    assert 1 <= policy.depth <= 2 * depth
    assert 0.004 <= policy.coalesce_s <= 0.012


def test_fixed_policies_stay_fixed():
    control = Control(DraftPolicy(adaptive=False))
    for _ in range(3):
        control.note_pass(0.001)
    control.note_ping(0.2)
    assert control.policy() is control._base
