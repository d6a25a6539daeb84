"""A controller's round over one roll-out: what is known of it, and carrying out what was decided."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update

from outrider_cloud.fleet.registry import members as membership
from outrider_cloud.fleet.registry import rollouts
from outrider_cloud.fleet.registry.tables import members
from outrider_cloud.fleet.rollout.decide import Round, View
from outrider_cloud.fleet.rollout.evidence import Baseline, Evidence
from outrider_cloud.fleet.rollout.spec import Spec
from outrider_cloud.fleet.rollout.states import IN_PROGRESS, MemberState, RolloutState, StageState

if TYPE_CHECKING:
    from sqlalchemy import Connection, Row


def evidence_of(connection: Connection, row: Row[Any]) -> Evidence:
    """The tests of a roll-out as they were saved, or fresh ones."""
    spec = Spec.read(row.spec)
    mine = select(members.c.device, members.c.stage, members.c.baseline).where(members.c.rollout == row.id)
    lines, canaries = {}, set()
    for device, stage, stored in connection.execute(mine):
        lines[device] = Baseline(stored[0], stored[1], stored[2], tuple(stored[3]))
        if stage == 0:
            canaries.add(device)
    if row.evidence:
        return Evidence.load(spec.gates, lines, row.evidence)
    return Evidence(spec.gates, lines, frozenset(canaries))


def save_evidence(connection: Connection, name: str, evidence: Evidence) -> None:
    """Keep the tests' state."""
    rollouts.change(connection, name, evidence=evidence.dump())


def view(connection: Connection, row: Row[Any], now: float, most: int = 500) -> View:
    """What is known of a roll-out, for `decide`."""
    spec = Spec.read(row.spec)
    here = (members.c.rollout == row.id) & (members.c.stage == row.stage)
    counts: Counter[MemberState] = Counter()
    for state, count in connection.execute(select(members.c.state, func.count()).where(here).group_by(members.c.state)):
        counts[MemberState(state)] = count

    def names(condition: Any) -> tuple[str, ...]:
        chosen = select(members.c.device).where(here & condition).order_by(members.c.changed, members.c.device)
        return tuple(connection.execute(chosen.limit(most)).scalars())

    reverting = (members.c.rollout == row.id) & (members.c.state == MemberState.REVERTING.value)
    late = members.c.told < now - spec.timeout_s
    lost = select(members.c.device).where(reverting & late).order_by(members.c.device).limit(most)
    old = (members.c.rollout == row.id) & members.c.state.in_([MemberState.WAITING, MemberState.CONTROL])
    tries_left = (members.c.state == MemberState.FAILED.value) & (members.c.attempt < spec.attempts)
    return View(
        RolloutState(row.state),
        row.stage,
        StageState(row.stage_state),
        counts,
        row.dispatched,
        row.stage_since,
        row.soak_since,
        waiting=names(members.c.state == MemberState.WAITING.value),
        expired=names(members.c.state.in_(IN_PROGRESS) & late),
        retryable=names(tries_left),
        lost=tuple(connection.execute(lost).scalars()),
        reverting=connection.execute(select(func.count()).where(reverting)).scalar_one(),
        has_control=connection.execute(select(members.c.device).where(old).limit(1)).first() is not None,
        approved=row.approved,
    )


def carry_out(connection: Connection, row: Row[Any], decided: Round, now: float) -> None:
    """Everything of one round, in the caller's transaction."""
    spec = Spec.read(row.spec)
    changed: dict[str, Any] = {"waits_for": decided.waits_for}
    for device in decided.time_out:
        membership.change(connection, row.id, device, state=MemberState.TIMED_OUT.value, changed=now, code="silent")
    for device in decided.tell:
        membership.tell(connection, row, spec, device, now)
    fresh = len(decided.tell) - len(decided.retried)
    if fresh:
        changed["dispatched"] = row.dispatched + fresh
    if decided.stage_state is not None:
        changed["stage_state"] = decided.stage_state.value
        if decided.stage_state is StageState.SOAKING:
            changed["soak_since"] = now
            rollouts.note(connection, row.id, f"stage {row.stage + 1}: all devices ended, soaking")
    if decided.next_stage:
        changed |= {"stage": row.stage + 1, "stage_since": now, "dispatched": 0, "approved": False}
        rollouts.note(connection, row.id, f"stage {row.stage + 1} passed; stage {row.stage + 2} begins")
        if row.stage + 2 == len(spec.stages):
            held = (members.c.rollout == row.id) & (members.c.state == MemberState.CONTROL.value)
            connection.execute(update(members).where(held).values(state=MemberState.WAITING.value))
    if decided.breach is not None:
        changed |= {"gate": decided.breach.gate, "reason": decided.breach.reason}
        rollouts.note(connection, row.id, f"gate {decided.breach.gate}: {decided.breach.reason}")
    rollouts.change(connection, row.id, **changed)
    if decided.state is not None:
        _change_state(connection, row, decided, now)


def _change_state(connection: Connection, row: Row[Any], decided: Round, now: float) -> None:
    if decided.state is RolloutState.ROLLING_BACK:
        rollouts.roll_back(connection, row.id, rollouts.CONTROLLER, decided.breach.reason if decided.breach else "")
        return
    if decided.state is RolloutState.RUNNING:
        rollouts.change(connection, row.id, stage_since=now)
        count = membership.begin(connection, row)
        rollouts.note(connection, row.id, f"started with {count} devices")
    assert decided.state is not None, "the caller looked"
    rollouts.move(connection, row, decided.state, rollouts.CONTROLLER, decided.breach.reason if decided.breach else "")
