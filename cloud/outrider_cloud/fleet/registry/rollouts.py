"""Roll-outs: what people do with them. Their devices are in `members`, a controller's round over them in `rounds`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select, update

from outrider_cloud.fleet.registry import access, members, webhooks
from outrider_cloud.fleet.registry.devices import selection
from outrider_cloud.fleet.registry.tables import events, rollouts
from outrider_cloud.fleet.rollout.spec import Spec
from outrider_cloud.fleet.rollout.states import GOT_THE_DRAFT, IN_PROGRESS, RolloutState, StageState, check_follows
from outrider_shared.errors import ConfigError, ConflictError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

CONTROLLER = "controller"


def create(connection: Connection, spec: Spec, author: str) -> str:
    """A new roll-out in state DRAFT; its name is its id.

    Raises:
        ConflictError: if the name is taken.
        ConfigError: if the group does not exist.
    """
    if connection.execute(select(rollouts.c.id).where(rollouts.c.id == spec.name)).first():
        raise ConflictError(f"a roll-out {spec.name!r} exists", hint="take another name")
    if members.BACK in spec.name or "/" in spec.name:
        raise ConfigError(f"{spec.name!r}: a roll-out's name has no '/'")
    selection(spec.device_class, spec.group, connection=connection)
    row = {"id": spec.name, "spec": spec.stored(), "author": author, "state": RolloutState.DRAFT.value}
    connection.execute(insert(rollouts).values(created=time.time(), **row))
    note(connection, spec.name, f"made by {author}", author, "rollout.create")
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
    move(connection, row, then, actor, "submitted")
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
        change(connection, name, approved=True)
        note(connection, name, f"{actor} allowed the step out of stage {row.stage + 1}", actor, "rollout.approve")
        return state
    if deny:
        move(connection, row, RolloutState.DENIED, actor, "")
        return RolloutState.DENIED
    if state is not RolloutState.AWAITING_APPROVAL:
        raise ConflictError(f"{name} is {state}; there is nothing to approve")
    if actor in row.approvers:
        raise RefusedError(f"{actor} has agreed already", hint="another approver has to agree, too")
    agreed = [*row.approvers, actor]
    change(connection, name, approvers=agreed)
    note(connection, name, f"{actor} agreed ({len(agreed)} of {spec.approvals})", actor, "rollout.approve")
    if len(agreed) < spec.approvals:
        return state
    move(connection, load(connection, name), RolloutState.SCHEDULED, actor, "approved")
    return RolloutState.SCHEDULED


def pause(connection: Connection, name: str, actor: str) -> None:
    """Tell no further devices; those that were told go on."""
    move(connection, load(connection, name), RolloutState.PAUSED, actor, "")


def resume(connection: Connection, name: str, actor: str) -> None:
    """Go on where it was paused; a gate that was broken is looked at afresh."""
    row = load(connection, name)
    move(connection, row, RolloutState.RUNNING, actor, "resumed")
    changed: dict[str, Any] = {"gate": "", "reason": "", "stage_since": time.time(), "dispatched": 0}
    if row.gate in {"acceptance", "latency"}:
        changed["evidence"] = None
    if row.stage_state == StageState.FAILED:
        changed["stage_state"] = StageState.DISPATCHING.value
    change(connection, name, **changed)


def abort(connection: Connection, name: str, actor: str) -> None:
    """End it here: devices keep what they have, those that still update are told to stop."""
    row = load(connection, name)
    move(connection, row, RolloutState.ABORTED, actor, "")
    members.send_back(connection, row.id, IN_PROGRESS)


def roll_back(connection: Connection, name: str, actor: str, why: str = "asked for") -> None:
    """Send every device that got the draft back to the one before."""
    row = load(connection, name)
    move(connection, row, RolloutState.ROLLING_BACK, actor, why)
    members.send_back(connection, row.id, GOT_THE_DRAFT)


def change(connection: Connection, name: str, **values: Any) -> None:
    """Set columns of a roll-out."""
    connection.execute(update(rollouts).where(rollouts.c.id == name).values(**values))


def move(connection: Connection, row: Row[Any], then: RolloutState, actor: str, why: str) -> None:
    """Into another state, which everybody is told of."""
    check_follows(RolloutState(row.state), then)
    change(connection, row.id, state=then.value, **({"waits_for": ""} if then.final else {}))
    what = then.value.replace("_", " ")
    note(connection, row.id, f"{what}: {why}" if why else what, actor, f"rollout.{then.value}")
    webhooks.tell(connection, f"rollout.{then.value}", {"rollout": row.id, "by": actor, "why": why})


def note(connection: Connection, name: str, what: str, actor: str = CONTROLLER, action: str = "rollout.event") -> None:
    """Something happened."""
    connection.execute(insert(events).values(rollout=name, at=time.time(), what=what))
    access.note(connection, actor, action, name, what=what)
