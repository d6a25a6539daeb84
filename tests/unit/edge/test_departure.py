"""Nodes leave in time for the cloud's next step, and no earlier."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.bench import methods
from outrider_edge.session.departure import Departures
from outrider_edge.session.estimates import Estimates, Measured
from outrider_edge.session.events import Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.emulator.profile import LinkProfile
from support.virtual import Scenario, StepCost, simulate
from support.virtual.pair import GREEDY, WARM, recorded


@given(st.floats(0.02, 0.3), st.floats(0.005, 0.05), st.floats(0.0, 0.5))
def test_a_node_leaves_before_a_step_that_it_can_reach_and_waits_less_than_a_step(rtt_s, step_s, ready_s):
    """Steps begin every `step_s` after `Open` arrived; what leaves is there shortly before one of them begins."""
    departures = Departures(Estimates(rtt_s=rtt_s, step_s=step_s))
    departures.note_open(0.0)
    leave_at = departures.leave_at(ready_s)
    if rtt_s < 0.6 * step_s:
        assert leave_at is None
        return
    early = step_s - leave_at % step_s
    assert 0.0 < early <= 0.001 + 0.04 * step_s + 1e-6
    assert ready_s - 1e-9 <= leave_at
    assert leave_at - ready_s <= step_s + 1e-9 or leave_at <= step_s


def test_nothing_waits_while_the_cloud_may_be_waiting_or_is_unknown():
    """No round trip, no step seen, or a cloud next door: nodes leave as they did."""
    assert Departures(Estimates()).leave_at(1.0) is None
    near = Departures(Estimates(rtt_s=0.001, step_s=0.02))
    near.note_commit(0.0, 1)
    assert near.leave_at(1.0) is None


def test_a_shorter_step_is_believed_sooner_than_a_longer_one():
    known = Estimates(rtt_s=0.05)
    departures = Departures(known)
    for at in (0.0, 0.02, 0.04):
        departures.note_commit(at, 1)
    departures.note_commit(0.05, 1)
    shorter = known.step_s
    assert shorter < 0.016
    departures.note_commit(0.07, 1)
    assert known.step_s - shorter < 0.001


def test_clouds_are_told_apart_and_the_drafter_is_the_same():
    measured = Measured()
    measured.of("a").rtt_s, measured.of("a").pass_s = 0.1, 0.002
    assert (measured.of("b").rtt_s, measured.of("b").pass_s) == (None, 0.002)
    assert measured.of("a").rtt_s == 0.1


@pytest.mark.parametrize("pair", [GREEDY, WARM])
@pytest.mark.parametrize("pass_ms", [0.3, 1.5])
@pytest.mark.parametrize("step_ms", [10, 25, 50])
def test_bytes_of_a_token_at_a_round_trip_of_50_ms(step_ms, pass_ms, pair):
    """At most 16 up and 12 down, pings included, the prompt aside; with the fewer right drafts of T = 1, too."""
    method = methods.Method("tried", Pace.AUTO, cloud_drafts=True)
    figures = simulate(
        Scenario(method, LinkProfile(0.05), StepCost(step_ms / 1e3), pass_ms / 1e3, answers=8, pair=recorded(pair))
    )
    totals = [answer.totals for answer in figures["answers"]]
    assert sum(t.uplink_bytes - t.prompt_bytes for t in totals) <= 16 * figures["tokens"]
    assert sum(t.downlink_bytes for t in totals) <= 12 * figures["tokens"]


@pytest.mark.parametrize("step_ms", [25, 50])
def test_waiting_saves_messages_and_costs_no_speed_and_no_text(step_ms):
    """At a round trip of 50 ms and a draft pass of 1.5 ms: at most 16 bytes up and 12 down per token, with pings."""

    def play(*, timed: bool) -> dict:
        method = methods.Method("tried", Pace.AUTO, policy=DraftPolicy(timed=timed), cloud_drafts=True)
        return simulate(Scenario(method, LinkProfile(0.05), StepCost(step_ms / 1e3), answers=8))

    at_once, timed = play(timed=False), play(timed=True)
    totals = [answer.totals for answer in timed["answers"]]
    assert timed["texts"] == at_once["texts"]
    assert timed["tokens_per_s"] >= 0.99 * at_once["tokens_per_s"]
    assert sum(t.draft_messages for t in totals) < 0.6 * sum(a.totals.draft_messages for a in at_once["answers"])
    assert sum(t.uplink_bytes - t.prompt_bytes for t in totals) <= 16 * timed["tokens"]
    assert sum(t.downlink_bytes for t in totals) <= 12 * timed["tokens"]
