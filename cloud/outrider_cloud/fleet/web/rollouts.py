"""Roll-outs: make, agree, watch, stop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from sqlalchemy import Connection, Select, func, select

from outrider_cloud.fleet.registry import rollouts, tables
from outrider_cloud.fleet.rollout.evidence import Evidence
from outrider_cloud.fleet.rollout.spec import Spec
from outrider_cloud.fleet.web.guard import Approver, Found, Operator, Viewer
from outrider_cloud.fleet.web.state import Services
from outrider_shared.errors import ConfigError

router = APIRouter(prefix="/api/rollouts")


class SpecBody(BaseModel):
    """A roll-out as an operator writes it; what is left out has the defaults of `Spec`."""

    model_config = {"extra": "allow"}
    name: str
    target: str


class Agreement(BaseModel):
    """Yes or no."""

    deny: bool = False


@router.get("")
def list_all(found: Found, _who: Viewer) -> dict[str, Any]:
    """All roll-outs, newest first."""
    with found.controller.database.reading() as connection:
        rows = connection.execute(select(tables.rollouts).order_by(tables.rollouts.c.created.desc()).limit(200)).all()
    counts = found.glance.counts()
    return {"rollouts": [_told(row, counts.get(row.id, {})) for row in rows]}


@router.post("", status_code=201)
def create(found: Found, who: Operator, body: SpecBody) -> dict[str, Any]:
    """Make a roll-out; it starts when submitted and, where wanted, approved."""
    stated = body.model_dump()
    if found.repository is not None:
        entry = found.repository.listed().get(body.target)
        if entry is None:
            raise ConfigError(f"no pack {body.target!r} is published", hint="outrider fleet model list")
        stated.setdefault("sha256", entry.hashes["sha256"])
        stated.setdefault("device_class", body.target.split("/")[1])
    with found.controller.database.transaction() as connection:
        name = rollouts.create(connection, Spec.read(stated), who)
        return _told(rollouts.load(connection, name), {})


@router.get("/{name}")
def one(found: Found, _who: Viewer, name: str) -> dict[str, Any]:
    """A roll-out with its stages, its gates' evidence and what happened."""
    columns = tables.members.c
    with found.controller.database.reading() as connection:
        row = rollouts.load(connection, name)
        grouped = connection.execute(
            select(columns.stage, columns.state, func.count())
            .where(columns.rollout == name)
            .group_by(columns.stage, columns.state)
        ).all()
        happened = connection.execute(
            select(tables.events).where(tables.events.c.rollout == name).order_by(tables.events.c.id.desc()).limit(100)
        ).all()
        wrong = connection.execute(troubled(name)).all()
    spec, total = Spec.read(row.spec), Counter[str]()
    stages: list[dict[str, Any]] = [
        {"percent": stage.percent, "soak_s": stage.soak_s, "approval": stage.approval, "counts": {}}
        for stage in spec.stages
    ]
    for stage, state, count in grouped:
        stages[stage]["counts"][state] = count
        total[state] += count
    return _told(row, dict(total)) | {
        "stages": stages,
        "evidence": _evidence(spec, row.evidence),
        "events": [{"at": event.at, "what": event.what} for event in happened],
        "troubled": [
            {"device": m.device, "state": m.state, "code": m.code, "message": m.message, "attempt": m.attempt}
            for m in wrong
        ],
    }


def troubled(name: str) -> Select[Any]:
    """The devices that something went wrong on, newest first; from an index of those alone."""
    columns = tables.members.c
    mine = (columns.rollout == name) & tables.TROUBLED
    return select(tables.members).where(mine).order_by(columns.changed.desc()).limit(50)


@router.get("/{name}/devices")
def of(
    found: Found, _who: Viewer, name: str, offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 100,
) -> dict[str, Any]:  # fmt: skip
    """Its devices, those that changed last first."""
    columns = tables.members.c
    chosen = select(tables.members).where(columns.rollout == name).order_by(columns.changed.desc(), columns.device)
    with found.controller.database.reading() as connection:
        rollouts.load(connection, name)
        rows = connection.execute(chosen.offset(offset).limit(limit)).all()
    hidden = {"baseline"}
    return {"devices": [{k: v for k, v in row._mapping.items() if k not in hidden} for row in rows]}  # noqa: SLF001


@router.post("/{name}/{verb}")
async def act(
    found: Found, who: Operator, name: str, verb: Literal["submit", "pause", "resume", "abort", "rollback"]
) -> dict[str, Any]:
    """Move a roll-out."""
    moves: dict[str, Any] = {
        "submit": rollouts.submit, "pause": rollouts.pause, "resume": rollouts.resume, "abort": rollouts.abort,
        "rollback": rollouts.roll_back,
    }  # fmt: skip
    return await _moved(found, name, lambda connection: moves[verb](connection, name, who))


@router.post("/{name}/approval/decision")
async def decide(found: Found, who: Approver, name: str, body: Agreement) -> dict[str, Any]:
    """Agree to a roll-out or to its next stage, or deny it."""
    return await _moved(found, name, lambda connection: rollouts.approve(connection, name, who, deny=body.deny))


async def _moved(found: Services, name: str, move: Callable[[Connection], object]) -> dict[str, Any]:
    """Move it in one transaction, beside the loop: sending a large fleet back takes a while."""

    def change() -> dict[str, Any]:
        with found.controller.database.transaction() as connection:
            move(connection)
            return _told(rollouts.load(connection, name), {})

    told = await asyncio.to_thread(change)
    found.controller.kick()
    await found.controller.wake()
    return told


def _told(row: Any, counts: dict[str, int]) -> dict[str, Any]:
    names = ("id", "author", "state", "stage", "stage_state", "created", "gate", "reason", "waits_for", "approvers")
    return {name: getattr(row, name) for name in names} | {"spec": row.spec, "counts": counts}


def _evidence(spec: Spec, stored: dict[str, Any] | None) -> dict[str, Any] | None:
    if not stored:
        return None
    evidence = Evidence.load(spec.gates, {}, stored)
    return {
        name: {
            "pairs": test.pairs, "mean_loss": test.mean_loss, "margin": test.margin, "p_value": test.p_value,
            "alarmed": test.alarmed, "alpha": test.alpha, "log_wealth": test.log_wealth,
        }
        for name, test in (("acceptance", evidence.acceptance), ("latency", evidence.latency))
    }  # fmt: skip
