"""What to do next with one roll-out, from what is known of it. Nothing is changed here.

One call decides one round; the controller carries it out in one transaction and calls again, so a controller that dies
between two rounds goes on with the next. Order of the rules: time-outs and retries, gates, dispatch, soak, next stage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.fleet.rollout.gates import Breach, broken
from outrider_cloud.fleet.rollout.spec import OnBreach
from outrider_cloud.fleet.rollout.states import IN_PROGRESS, MemberState, RolloutState, StageState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outrider_cloud.fleet.rollout.evidence import Evidence
    from outrider_cloud.fleet.rollout.spec import Spec


@dataclass(frozen=True, slots=True)
class View:
    """What is known.

    Attributes:
        stage, stage_state: Where it stands.
        counts: Devices of this stage by state; earlier stages' devices count in the gates of their own stage only.
        dispatched: Devices told in this stage so far.
        stage_since, soak_since: When this stage began, and when its last device ended.
        waiting: Some devices of this stage that were not told yet.
        expired: Devices of this stage that were told too long ago and did not end.
        retryable: Devices of this stage that failed and may try again.
        lost: Devices that were to go back, were told so too long ago and did not say that they did.
        reverting: Devices of any stage that still have to go back, lost ones among them.
        has_control: Whether any device keeps the old draft to compare with.
        approved: Whether somebody allowed the step out of this stage.
    """

    state: RolloutState
    stage: int
    stage_state: StageState
    counts: Mapping[MemberState, int]
    dispatched: int
    stage_since: float
    soak_since: float
    waiting: tuple[str, ...] = ()
    expired: tuple[str, ...] = ()
    retryable: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    reverting: int = 0
    has_control: bool = False
    approved: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What to do.

    Attributes:
        tell: Devices to be given the draft now.
        time_out: Devices to be written off as silent.
        stage_state: The stage's next state, if it changes.
        next_stage: Whether the next stage begins.
        state: The roll-out's next state, if it changes.
        breach: The gate that was broken.
        waits_for: Why nothing more happens now, for the operator.
    """

    tell: tuple[str, ...] = ()
    time_out: tuple[str, ...] = ()
    stage_state: StageState | None = None
    next_stage: bool = False
    state: RolloutState | None = None
    breach: Breach | None = None
    waits_for: str = ""
    retried: tuple[str, ...] = field(default=())


def decide(now: float, spec: Spec, view: View, evidence: Evidence | None) -> Round:
    """The next round of a roll-out."""
    if view.state is RolloutState.SCHEDULED:
        if now >= spec.start_at:
            return Round(state=RolloutState.RUNNING, stage_state=StageState.DISPATCHING)
        return Round(waits_for="its start time")
    if view.state is RolloutState.ROLLING_BACK:
        if not view.reverting:
            return Round(state=RolloutState.ROLLED_BACK)
        # What the lost ones are to be is retained: they go back when they are there again.
        return Round(time_out=view.lost, waits_for=f"{view.reverting} devices to go back")
    if view.state is not RolloutState.RUNNING:
        return Round()
    return _running(now, spec, view, evidence)


def _running(now: float, spec: Spec, view: View, evidence: Evidence | None) -> Round:
    open_ = view.expired or view.retryable or view.waiting or any(view.counts.get(state) for state in IN_PROGRESS)
    breach = broken(spec.gates, view.counts, evidence, whole=not open_)
    if breach is not None:
        after = RolloutState.ROLLING_BACK if spec.on_breach is OnBreach.ROLLBACK else RolloutState.PAUSED
        return Round(time_out=view.expired, stage_state=StageState.FAILED, state=after, breach=breach)
    if view.expired or view.retryable:
        return Round(time_out=view.expired, tell=view.retryable, retried=view.retryable)
    if view.waiting:
        allowed = math.floor((now - view.stage_since) * spec.rate(view.stage)) + 1 - view.dispatched
        return Round(tell=view.waiting[: max(0, allowed)], waits_for="the dispatch rate")
    if any(view.counts.get(state) for state in IN_PROGRESS):
        return Round(waits_for="devices that are updating")
    if view.stage_state is StageState.DISPATCHING:
        return Round(stage_state=StageState.SOAKING)
    return _soaking(now, spec, view, evidence)


def _soaking(now: float, spec: Spec, view: View, evidence: Evidence | None) -> Round:
    stage = spec.stages[view.stage]
    left = stage.soak_s - (now - view.soak_since)
    if left > 0:
        return Round(waits_for=f"{left:.0f} s of soaking")
    wanted = spec.gates.min_pairs if evidence is not None and view.has_control and spec.gates.acceptance else 0
    pairs = evidence.acceptance.pairs if evidence is not None else 0
    if pairs < wanted and not view.approved:
        return Round(waits_for=f"{wanted - pairs} more pairs of windows (or an approval)")
    if stage.approval and not view.approved:
        return Round(waits_for="an approval")
    if view.stage + 1 == len(spec.stages):
        return Round(stage_state=StageState.PASSED, state=RolloutState.SUCCEEDED)
    return Round(next_stage=True, stage_state=StageState.DISPATCHING)
