"""Devices, groups, configuration and commands."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy import func, or_, select

from outrider_cloud.fleet.registry import access, desired, devices, tables
from outrider_cloud.fleet.web.guard import Approver, Found, Operator, Viewer
from outrider_shared.fleet.messages import Command, CommandName
from outrider_shared.ids import parse_device_id

router = APIRouter(prefix="/api")
_HIDDEN = frozenset({"base_latency", "base_total", "base_square", "base_windows", "base_sha256", "config"})


class GroupBody(BaseModel):
    """A group: named devices, or all that carry these labels."""

    members: list[str] = Field(default_factory=list, max_length=100_000)
    labels: dict[str, str] = Field(default_factory=dict)


class CommandBody(BaseModel):
    """One command to one device."""

    name: CommandName
    args: dict[str, Any] = Field(default_factory=dict)
    timeout_s: float = Field(10.0, gt=0, le=120)


def _told(row: Any) -> dict[str, Any]:
    return {name: value for name, value in row._mapping.items() if name not in _HIDDEN}  # noqa: SLF001 - public API


@router.get("/overview")
def overview(found: Found, _who: Viewer) -> dict[str, Any]:
    """The fleet at a glance."""
    return found.glance.overview()


@router.get("/history")
def history(found: Found, _who: Viewer, minutes: Annotated[int, Query(ge=1, le=1440)] = 60) -> dict[str, Any]:
    """What all devices did, by the minute (since 1970, UTC), oldest first; idle minutes are left out."""
    since = int(time.time() // 60) - minutes
    chosen = select(tables.minutes).where(tables.minutes.c.minute > since).order_by(tables.minutes.c.minute)
    with found.controller.database.reading() as connection:
        return {"minutes": [dict(row._mapping) for row in connection.execute(chosen)]}  # noqa: SLF001 - public API


@router.get("/devices")
def list_devices(
    found: Found,
    _who: Viewer,
    search: str = "",
    group: str = "",
    online: bool | None = None,
    version: str = "",
    after: str = "",
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Devices by name; `version` is the target of the draft they run.

    `after` is the `next` of the answer before: to read a large fleet to its end. `offset` is for pages of a table.
    """
    with found.controller.database.reading() as connection:
        chosen = devices.selection("", group, connection=connection)
        columns = tables.devices.c
        if search:
            safe = search.replace("\\", "\\\\").replace("%", r"\%").replace("_", r"\_")
            chosen = chosen.where(or_(columns.id.like(f"%{safe}%", escape="\\"), columns.device_class == search))
        if online is not None:
            chosen = chosen.where(columns.online == online)
        if version:
            chosen = chosen.where(columns.active_target == version)
        total = connection.execute(chosen.order_by(None).with_only_columns(func.count(columns.id))).scalar_one()
        if after:
            chosen = chosen.where(columns.id > after)
        # Names first, from an index: of the devices before `offset` nothing else is read.
        names = chosen.with_only_columns(columns.id).offset(offset).limit(limit).subquery()
        rows = connection.execute(
            select(tables.devices).join(names, names.c.id == columns.id).order_by(columns.id)
        ).all()
    told = [_told(row) for row in rows]
    return {"total": total, "devices": told, "next": told[-1]["id"] if len(told) == limit else None}


@router.get("/devices/{device}")
def one_device(found: Found, _who: Viewer, device: str) -> dict[str, Any]:
    """What a device is and is to be."""
    with found.controller.database.reading() as connection:
        row = devices.check_known(connection, device)
        wanted = connection.execute(select(tables.desired).where(tables.desired.c.device == device)).one_or_none()
        parts = connection.execute(
            select(tables.members).where(tables.members.c.device == device).order_by(tables.members.c.changed.desc())
        ).all()
    return _told(row) | {
        "config": row.config,
        "baseline_windows": row.base_windows,
        "desired": dict(wanted._mapping) if wanted is not None else None,  # noqa: SLF001
        "rollouts": [
            {"rollout": part.rollout, "state": part.state, "progress": part.progress, "code": part.code,
             "message": part.message, "changed": part.changed}
            for part in parts
        ],
    }  # fmt: skip


@router.get("/devices/{device}/telemetry")
def telemetry(
    found: Found, _who: Viewer, device: str, since: float = 0.0, limit: Annotated[int, Query(ge=1, le=5000)] = 500
) -> dict[str, Any]:
    """Its newest windows, oldest first."""
    columns = tables.telemetry.c
    mine = select(tables.telemetry).where((columns.device == device) & (columns.at > since))
    with found.controller.database.reading() as connection:
        rows = connection.execute(mine.order_by(columns.at.desc(), columns.id.desc()).limit(limit)).all()
    return {"windows": [dict(row._mapping) for row in reversed(rows)]}  # noqa: SLF001


@router.patch("/devices/{device}/config")
def configure(found: Found, who: Operator, device: str, config: dict[str, Any]) -> dict[str, Any]:
    """Change settings of a device; those not given stay."""
    name = parse_device_id(device)
    with found.controller.database.transaction() as connection:
        devices.check_known(connection, name)
        version = desired.change(connection, name, config=config)
        access.note(connection, who, "device.configure", name, config=config, version=version)
    found.controller.kick()
    return {"device": name, "version": version}


@router.patch("/config")
def configure_many(found: Found, who: Operator, config: dict[str, Any], group: str = "") -> dict[str, Any]:
    """Change settings of a group, or with none of every device."""
    with found.controller.database.transaction() as connection:
        chosen = devices.selection("", group, connection=connection).with_only_columns(tables.devices.c.id)
        names = list(connection.execute(chosen).scalars())
        desired.change_many(connection, names, config=config)
        access.note(connection, who, "group.configure", group or "*", config=config, devices=len(names))
    found.controller.kick()
    return {"devices": len(names)}


@router.delete("/devices/{device}")
async def forget(found: Found, who: Approver, device: str) -> dict[str, Any]:
    """Take a device out of registry and broker; its certificate is `outrider fleet revoke`'s business."""
    name = parse_device_id(device)

    def forgotten() -> bool:
        with found.controller.database.transaction() as connection:
            access.note(connection, who, "device.revoked", name)
            return devices.forget(connection, name)

    known = await asyncio.to_thread(forgotten)
    await found.plane.forget(name)
    await found.controller.wake()
    return {"device": name, "known": known}


@router.post("/devices/{device}/commands")
async def command(found: Found, who: Operator, device: str, body: CommandBody) -> dict[str, Any]:
    """Tell a device to do something now, and wait for its answer."""
    name, now = parse_device_id(device), time.time()

    def note() -> None:
        with found.controller.database.transaction() as connection:
            devices.check_known(connection, name)
            access.note(connection, who, f"command.{body.name.value}", name, args=body.args)

    await asyncio.to_thread(note)
    order = Command(secrets.token_hex(8), name, body.name, now, now + body.timeout_s, body.args)
    result = await found.plane.command(order, body.timeout_s)
    return {"id": result.id, "code": result.code, "message": result.message, "output": result.output}


@router.get("/groups")
def list_groups(found: Found, _who: Viewer) -> dict[str, Any]:
    """All groups."""
    with found.controller.database.reading() as connection:
        rows = connection.execute(select(tables.groups).order_by(tables.groups.c.name)).all()
    return {"groups": [dict(row._mapping) for row in rows]}  # noqa: SLF001


@router.put("/groups/{group}")
def set_group(found: Found, who: Operator, group: str, body: GroupBody) -> dict[str, Any]:
    """Make or replace a group."""
    with found.controller.database.transaction() as connection:
        devices.set_group(connection, group, body.members, body.labels)
        access.note(connection, who, "group.set", group, labels=body.labels, members=len(body.members))
    return {"group": group}


@router.get("/models")
def models(found: Found, _who: Viewer) -> dict[str, Any]:
    """Packs that devices may install."""
    listed = found.repository.listed() if found.repository is not None else {}
    return {
        "models": [
            {"target": path, "bytes": entry.length, "sha256": entry.hashes["sha256"]} for path, entry in listed.items()
        ]
    }
