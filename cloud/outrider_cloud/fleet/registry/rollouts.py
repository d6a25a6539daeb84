"""Roll-outs and their members, and carrying a decided round into the registry."""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from outrider_cloud.fleet.registry import access, desired, webhooks
from outrider_cloud.fleet.registry.devices import baseline, selection
from outrider_cloud.fleet.registry.tables import devices, events, members, rollouts
from outrider_cloud.fleet.rollout.decide import Round, View
from outrider_cloud.fleet.rollout.evidence import Baseline, Evidence
from outrider_cloud.fleet.rollout.spec import Spec
from outrider_cloud.fleet.rollout.states import (
    GOT_THE_DRAFT,
    IN_PROGRESS,
    MemberState,
    RolloutState,
    StageState,
    check_follows,
)
from outrider_shared.errors import ConfigError, ConflictError, RefusedError
from outrider_shared.fleet.desired import Assignment
from outrider_shared.fleet.messages import UpdateState

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

BACK = "/back"
BUNDLED = "bundled"
_NO_HASH = "0" * 64
_CONTROLLER = "controller"
_AT_ONCE = 500  # devices of a statement
_FOR_MEMBERS = frozenset({
    "id", "active_sha256", "base_sha256", "base_windows", "base_total", "base_square", "base_latency",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Progress:
    """What a device said about one attempt, in a status or a report."""

    device: str
    rollout: str
    attempt: int
    state: UpdateState
    done: float = 0.0
    code: str = ""
    message: str = ""


def create(connection: Connection, spec: Spec, author: str) -> str:
    """A new roll-out in state DRAFT; its name is its id.

    Raises:
        ConflictError: if the name is taken.
        ConfigError: if the group does not exist.
    """
    if connection.execute(select(rollouts.c.id).where(rollouts.c.id == spec.name)).first():
        raise ConflictError(f"a roll-out {spec.name!r} exists", hint="take another name")
    if BACK in spec.name or "/" in spec.name:
        raise ConfigError(f"{spec.name!r}: a roll-out's name has no '/'")
    selection(spec.device_class, spec.group, connection=connection)
    row = {"id": spec.name, "spec": spec.stored(), "author": author, "state": RolloutState.DRAFT.value}
    connection.execute(insert(rollouts).values(created=time.time(), **row))
    _tell(connection, spec.name, f"made by {author}", author, "rollout.create")
    return spec.name


def load(connection: Connection, name: str) -> Row[Any]:
    """The row of a roll-out.

    Raises:
        ConfigError: if there is none of that name.
    """
    row = connection.execute(select(rollouts).where(rollouts.c.id == name)).one_or_none()
    if row is None:
        raise ConfigError(f"no roll-out {name!r}", hint="outrider fleet rollout list")
    return row


def live(connection: Connection) -> Sequence[Row[Any]]:
    """Roll-outs in which something may happen by itself."""
    states = [RolloutState.SCHEDULED, RolloutState.RUNNING, RolloutState.ROLLING_BACK]
    return connection.execute(select(rollouts).where(rollouts.c.state.in_(states))).all()


def submit(connection: Connection, name: str, actor: str) -> RolloutState:
    """Out of DRAFT: to be approved by others, or scheduled at once."""
    row = load(connection, name)
    spec = Spec.read(row.spec)
    then = RolloutState.AWAITING_APPROVAL if spec.approvals else RolloutState.SCHEDULED
    _move(connection, row, then, actor, "submitted")
    return then


def approve(connection: Connection, name: str, actor: str, *, deny: bool = False) -> RolloutState:
    """An approver's word: to start, or in a running one to go on to the next stage.

    Raises:
        RefusedError: if it is the author's own, or given twice.
    """
    row = load(connection, name)
    spec, state = Spec.read(row.spec), RolloutState(row.state)
    if actor == row.author and spec.approvals:
        raise RefusedError(f"{actor} made this roll-out", hint="another approver has to agree")
    if state is RolloutState.RUNNING and not deny:
        _set(connection, name, approved=True)
        _tell(connection, name, f"{actor} allowed the step out of stage {row.stage + 1}", actor, "rollout.approve")
        return state
    if deny:
        _move(connection, row, RolloutState.DENIED, actor, "")
        return RolloutState.DENIED
    if state is not RolloutState.AWAITING_APPROVAL:
        raise ConflictError(f"{name} is {state}; there is nothing to approve")
    if actor in row.approvers:
        raise RefusedError(f"{actor} has agreed already", hint="another approver has to agree, too")
    agreed = [*row.approvers, actor]
    _set(connection, name, approvers=agreed)
    _tell(connection, name, f"{actor} agreed ({len(agreed)} of {spec.approvals})", actor, "rollout.approve")
    if len(agreed) < spec.approvals:
        return state
    _move(connection, load(connection, name), RolloutState.SCHEDULED, actor, "approved")
    return RolloutState.SCHEDULED


def pause(connection: Connection, name: str, actor: str) -> None:
    """Tell no further devices; those that were told go on."""
    _move(connection, load(connection, name), RolloutState.PAUSED, actor, "")


def resume(connection: Connection, name: str, actor: str) -> None:
    """Go on where it was paused; a gate that was broken is looked at afresh."""
    row = load(connection, name)
    _move(connection, row, RolloutState.RUNNING, actor, "resumed")
    changed: dict[str, Any] = {"gate": "", "reason": "", "stage_since": time.time(), "dispatched": 0}
    if row.gate in {"acceptance", "latency"}:
        changed["evidence"] = None
    if row.stage_state == StageState.FAILED:
        changed["stage_state"] = StageState.DISPATCHING.value
    _set(connection, name, **changed)


def abort(connection: Connection, name: str, actor: str) -> None:
    """End it here: devices keep what they have, those that still update are told to stop."""
    row = load(connection, name)
    _move(connection, row, RolloutState.ABORTED, actor, "")
    busy = (members.c.rollout == name) & members.c.state.in_(IN_PROGRESS)
    _back(connection, row, busy)


def roll_back(connection: Connection, name: str, actor: str, why: str = "asked for") -> None:
    """Send every device that got the draft back to the one before."""
    row = load(connection, name)
    _move(connection, row, RolloutState.ROLLING_BACK, actor, why)
    got = (members.c.rollout == name) & members.c.state.in_(GOT_THE_DRAFT)
    _back(connection, row, got)


def _back(connection: Connection, row: Row[Any], which: Any) -> None:
    """Assign to these members what they ran before: one statement for all that ran the same."""
    same: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    columns = members.c
    for device, attempt, before in connection.execute(
        select(columns.device, columns.attempt, columns.before).where(which)
    ):
        if before is not None:
            same[attempt, before["target"], before["sha256"]].append(device)
    now = time.time()
    changed = {"state": MemberState.REVERTING.value, "told": now, "changed": now, "progress": ""}
    for (attempt, target, sha256), names in same.items():
        desired.change_many(connection, names, assignment=Assignment(row.id + BACK, attempt, target, sha256))
        for start in range(0, len(names), _AT_ONCE):
            mine = (columns.rollout == row.id) & columns.device.in_(names[start : start + _AT_ONCE])
            connection.execute(update(members).where(mine).values(**changed))


def begin(connection: Connection, row: Row[Any]) -> int:
    """Choose the members of all stages and the control group; returns how many there are."""
    spec = Spec.read(row.spec)
    return _add_members(connection, row.id, spec, first_stage=0)


def join_late(connection: Connection, row: Row[Any]) -> int:
    """Take devices in that match by now and are no members yet; they belong to the present stage."""
    spec = Spec.read(row.spec)
    return _add_members(connection, row.id, spec, first_stage=row.stage, late=True) if spec.late_joiners else 0


def _add_members(connection: Connection, name: str, spec: Spec, *, first_stage: int, late: bool = False) -> int:
    chosen = selection(spec.device_class, spec.group, connection=connection)
    known = select(members.c.device).where((members.c.rollout == name) & (members.c.device == devices.c.id))
    wanted = [column for column in devices.c if column.name in _FOR_MEMBERS]
    found = connection.execute(chosen.where(~known.exists()).with_only_columns(*wanted)).all()
    ordered = sorted(found, key=lambda device: place(name, device.id))
    total, now, rows = len(ordered), time.time(), []
    for index, device in enumerate(ordered):
        share = 100 * (index + 1) / total
        stage = next(i for i, part in enumerate(spec.stages) if share <= part.percent or i + 1 == len(spec.stages))
        stage = first_stage if late else 0 if index == 0 else stage
        done = device.active_sha256 == spec.sha256
        control = not late and not done and stage > 0 and index >= total * (1 - spec.control_percent / 100)
        state = MemberState.COMMITTED if done else MemberState.CONTROL if control else MemberState.WAITING
        line = baseline(device) if device.base_sha256 == device.active_sha256 else Baseline()
        rows.append({
            "rollout": name, "device": device.id, "stage": stage, "state": state.value, "control": control,
            "changed": now, "progress": "has it already" if done else "",
            "baseline": [line.windows, line.total, line.square, list(line.latency)],
        })  # fmt: skip
    if rows:
        connection.execute(insert(members), rows)
    return len(rows)


def place(name: str, device: str) -> bytes:
    """Where a device stands in the order of a roll-out: by lot, the same whenever it is drawn."""
    return hashlib.sha256(f"{name}\0{device}".encode()).digest()


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
        _member(connection, row.id, device, state=MemberState.TIMED_OUT.value, changed=now, code="silent")
    for device in decided.tell:
        _tell_device(connection, row, spec, device, now)
    fresh = len(decided.tell) - len(decided.retried)
    if fresh:
        changed["dispatched"] = row.dispatched + fresh
    if decided.stage_state is not None:
        changed["stage_state"] = decided.stage_state.value
        if decided.stage_state is StageState.SOAKING:
            changed["soak_since"] = now
            _tell(connection, row.id, f"stage {row.stage + 1}: all devices ended, soaking")
    if decided.next_stage:
        changed |= {"stage": row.stage + 1, "stage_since": now, "dispatched": 0, "approved": False}
        _tell(connection, row.id, f"stage {row.stage + 1} passed; stage {row.stage + 2} begins")
        if row.stage + 2 == len(spec.stages):
            held = (members.c.rollout == row.id) & (members.c.state == MemberState.CONTROL.value)
            connection.execute(update(members).where(held).values(state=MemberState.WAITING.value))
    if decided.breach is not None:
        changed |= {"gate": decided.breach.gate, "reason": decided.breach.reason}
        _tell(connection, row.id, f"gate {decided.breach.gate}: {decided.breach.reason}")
    _set(connection, row.id, **changed)
    if decided.state is not None:
        _change_state(connection, row, decided, now)


def _change_state(connection: Connection, row: Row[Any], decided: Round, now: float) -> None:
    if decided.state is RolloutState.ROLLING_BACK:
        roll_back(connection, row.id, _CONTROLLER, decided.breach.reason if decided.breach else "")
        return
    if decided.state is RolloutState.RUNNING:
        _set(connection, row.id, stage_since=now)
        count = begin(connection, row)
        _tell(connection, row.id, f"started with {count} devices")
    assert decided.state is not None, "the caller looked"
    _move(connection, row, decided.state, _CONTROLLER, decided.breach.reason if decided.breach else "")


def _tell_device(connection: Connection, row: Row[Any], spec: Spec, device: str, now: float) -> None:
    active = connection.execute(
        select(devices.c.active_target, devices.c.active_sha256).where(devices.c.id == device)
    ).one()
    mine = (members.c.rollout == row.id) & (members.c.device == device)
    member = connection.execute(select(members).where(mine)).one()
    before = member.before or {
        "target": active.active_target or BUNDLED,
        "sha256": active.active_sha256 if len(active.active_sha256) == 64 else _NO_HASH,
    }
    attempt = member.attempt + 1
    desired.change(connection, device, assignment=Assignment(row.id, attempt, spec.target, spec.sha256))
    state = {"state": MemberState.DISPATCHED.value, "attempt": attempt, "told": now, "changed": now, "before": before}
    connection.execute(update(members).where(mine).values(progress="", code="", message="", **state))


_ENDS = {
    UpdateState.COMMITTED: MemberState.COMMITTED,
    UpdateState.FAILED: MemberState.FAILED,
    UpdateState.ROLLED_BACK: MemberState.FAILED,
    UpdateState.CANCELED: MemberState.FAILED,
    UpdateState.SUPERSEDED: MemberState.FAILED,
    UpdateState.REJECTED: MemberState.REJECTED,
}


def progress(connection: Connection, said: Progress) -> bool:
    """Take what a device said; False if it is of another attempt than the present one, or nothing new."""
    name = said.rollout.removesuffix(BACK)
    mine = (members.c.rollout == name) & (members.c.device == said.device)
    row = connection.execute(select(members).where(mine)).one_or_none()
    if row is None or row.attempt != said.attempt:
        return False
    state = MemberState(row.state)
    if said.rollout.endswith(BACK):
        if state is MemberState.REVERTED:
            return False
        then = MemberState.REVERTED if said.state.final else state
    elif state in {MemberState.REVERTING, MemberState.REVERTED, MemberState.COMMITTED}:
        return False
    else:
        then = _ENDS.get(said.state, MemberState.ACTIVE)
    changed = {"state": then.value, "progress": said.state.value, "done": said.done, "code": said.code}
    if all(getattr(row, key) == value for key, value in changed.items()):
        return False
    connection.execute(update(members).where(mine).values(changed=time.time(), message=said.message, **changed))
    return True


def _member(connection: Connection, rollout: str, device: str, **values: Any) -> None:
    mine = (members.c.rollout == rollout) & (members.c.device == device)
    connection.execute(update(members).where(mine).values(**values))


def _set(connection: Connection, name: str, **values: Any) -> None:
    connection.execute(update(rollouts).where(rollouts.c.id == name).values(**values))


def save_evidence(connection: Connection, name: str, evidence: Evidence) -> None:
    """Keep the tests' state."""
    _set(connection, name, evidence=evidence.dump())


def _move(connection: Connection, row: Row[Any], then: RolloutState, actor: str, why: str) -> None:
    check_follows(RolloutState(row.state), then)
    _set(connection, row.id, state=then.value)
    what = then.value.replace("_", " ")
    _tell(connection, row.id, f"{what}: {why}" if why else what, actor, f"rollout.{then.value}")
    webhooks.tell(connection, f"rollout.{then.value}", {"rollout": row.id, "by": actor, "why": why})


def _tell(
    connection: Connection, name: str, what: str, actor: str = _CONTROLLER, action: str = "rollout.event"
) -> None:
    connection.execute(insert(events).values(rollout=name, at=time.time(), what=what))
    access.note(connection, actor, action, name, what=what)
