"""The devices of roll-outs: who is in which stage, what each was told, and what it said."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, insert, select, update

from outrider_cloud.fleet.registry import desired
from outrider_cloud.fleet.registry.devices import baseline, selection
from outrider_cloud.fleet.registry.tables import devices, members
from outrider_cloud.fleet.rollout.evidence import Baseline
from outrider_cloud.fleet.rollout.spec import Spec
from outrider_cloud.fleet.rollout.states import MemberState
from outrider_shared.fleet.desired import Assignment
from outrider_shared.fleet.messages import UpdateState

if TYPE_CHECKING:
    from collections.abc import Collection

    from sqlalchemy import Connection, Row

BACK = "/back"
BUNDLED = "bundled"
_NO_HASH = "0" * 64
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


def counts(connection: Connection) -> dict[str, dict[str, int]]:
    """How many devices of each roll-out are in which state."""
    columns = members.c
    grouped = select(columns.rollout, columns.state, func.count()).group_by(columns.rollout, columns.state)
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for name, state, count in connection.execute(grouped):
        found[name][state] = count
    return found


def tell(connection: Connection, row: Row[Any], spec: Spec, device: str, now: float) -> None:
    """Assign the roll-out's draft to a device."""
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


def send_back(connection: Connection, name: str, states: Collection[MemberState]) -> None:
    """Assign to the members in these states what they ran before: one statement for all that ran the same."""
    same: dict[tuple[int, str, str], list[str]] = defaultdict(list)
    columns = members.c
    for device, attempt, before in connection.execute(
        select(columns.device, columns.attempt, columns.before).where(
            (columns.rollout == name) & columns.state.in_(states)
        )
    ):
        if before is not None:
            same[attempt, before["target"], before["sha256"]].append(device)
    now = time.time()
    changed = {"state": MemberState.REVERTING.value, "told": now, "changed": now, "progress": ""}
    for (attempt, target, sha256), names in same.items():
        desired.change_many(connection, names, assignment=Assignment(name + BACK, attempt, target, sha256))
        for start in range(0, len(names), _AT_ONCE):
            mine = (columns.rollout == name) & columns.device.in_(names[start : start + _AT_ONCE])
            connection.execute(update(members).where(mine).values(**changed))


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


def change(connection: Connection, rollout: str, device: str, **values: Any) -> None:
    """Set columns of a member."""
    mine = (members.c.rollout == rollout) & (members.c.device == device)
    connection.execute(update(members).where(mine).values(**values))
