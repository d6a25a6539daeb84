"""Devices: what they said last, what they did, and the groups they are in.

`take` is the one way in for what devices say. It may see a message twice (a controller that died before it
acknowledged) and counts it once: the numbers it compares with stand in the same row and change in one transaction.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from outrider_cloud.fleet.registry.tables import devices, groups, telemetry
from outrider_cloud.fleet.rollout.evidence import Baseline, Window
from outrider_shared.errors import ConfigError
from outrider_shared.fleet.messages import Info, Presence, Reported, Telemetry, UpdateStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row, Select

    from outrider_cloud.fleet.plane import Arrived

_SMOOTH = 0.2


def take(connection: Connection, batch: Sequence[Arrived]) -> list[Arrived]:
    """Commit what devices said, in order; returns what was new."""
    rows = _known(connection, {arrived.device for arrived in batch})
    changed: set[str] = set()
    kept, windows = [], []
    for arrived in batch:
        row = rows.setdefault(arrived.device, {"id": arrived.device})
        if not _apply(row, arrived):
            continue
        changed.add(arrived.device)
        kept.append(arrived)
        if isinstance(arrived.message, Telemetry):
            windows.append(_window_row(arrived))
    if changed:
        _upsert(connection, [rows[device] for device in sorted(changed)])
    if windows:
        connection.execute(insert(telemetry), windows)
    return kept


def _known(connection: Connection, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    wanted, found = sorted(names), {}
    for start in range(0, len(wanted), 500):
        chosen = select(devices).where(devices.c.id.in_(wanted[start : start + 500]))
        found.update({row.id: dict(row._mapping) for row in connection.execute(chosen)})  # noqa: SLF001 - public API
    return found


def _upsert(connection: Connection, rows: list[dict[str, Any]]) -> None:
    filled = [{**_EMPTY, **row} for row in rows]
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = make(devices)
    statement = statement.on_conflict_do_update(
        index_elements=["id"], set_={name: statement.excluded[name] for name in _EMPTY if name != "id"}
    )
    connection.execute(statement, filled)


def _default(column: Any) -> Any:
    if column.default is None:
        return None
    return column.default.arg({}) if column.default.is_callable else column.default.arg


_EMPTY = {column.name: _default(column) for column in devices.columns}


def _apply(row: dict[str, Any], arrived: Arrived) -> bool:
    """Write a message into the device's row; False if it is old or a repeat."""
    message = arrived.message
    if not arrived.retained:
        row["seen"] = arrived.at
    match message:
        case Presence():
            return _presence(row, message, arrived.at)
        case Info():
            row.update(
                device_class=message.device_class, labels=message.labels, agent=message.agent, system=message.system,
                tokenizer=message.tokenizer, cpus=message.cpus, memory_bytes=message.memory_bytes,
            )  # fmt: skip
            _active(row, message.active)
        case Reported():
            _active(row, message.active)
            row.update(applied_version=message.version, refused=message.refused, config=message.config)
        case Telemetry():
            return _telemetry(row, message)
        case UpdateStatus():
            if message.seq <= row.get("status_seq", -1):
                return False
            row["status_seq"] = message.seq
        case _:
            return False
    return True


def _presence(row: dict[str, Any], message: Presence, at: float) -> bool:
    """A Will of another connection than the last birth's is late (Sparkplug B 3.0, section 6.4.3)."""
    known = row.get("bd", -1)
    if message.bd < known or (message.bd == known and row.get("online") == message.online):
        return False
    if not message.online and message.bd != known and known >= 0:
        return False
    row.update(online=message.online, bd=message.bd, since=at)
    return True


def _active(row: dict[str, Any], active: Any) -> None:
    row.update(active_target=active.target, active_sha256=active.sha256, active_name=active.name)


def _telemetry(row: dict[str, Any], message: Telemetry) -> bool:
    bd, seq = row.get("tele_bd", -1), row.get("tele_seq", -1)
    if (message.bd, message.seq) <= (bd, seq):
        return False
    expected = seq + 1 if message.bd == bd else 0
    row["lost"] = row.get("lost", 0) + max(0, message.seq - expected)
    row.update(tele_bd=message.bd, tele_seq=message.seq)
    _active(row, message.active)
    for name in ("requests", "tokens", "cloud_steps"):
        row[name] = row.get(name, 0) + getattr(message, name)
    window = Window.of(row["id"], message.tried, message.taken, message.token_ms)
    _set_baseline(row, _baseline_of(row, message.active.sha256).plus(window), message.active.sha256)
    if window.acceptance is not None:
        before = row.get("acceptance")
        row["acceptance"] = window.acceptance if before is None else before + _SMOOTH * (window.acceptance - before)
    if message.p95_ms is not None:
        row["p95_ms"] = message.p95_ms
    return True


def _baseline_of(row: Mapping[str, Any], sha256: str) -> Baseline:
    if row.get("base_sha256", "") != sha256 or "base_windows" not in row:
        return Baseline()
    return Baseline(row["base_windows"], row["base_total"], row["base_square"], tuple(row["base_latency"]))


def _set_baseline(row: dict[str, Any], line: Baseline, sha256: str) -> None:
    row.update(
        base_sha256=sha256, base_windows=line.windows, base_total=line.total, base_square=line.square,
        base_latency=list(line.latency),
    )  # fmt: skip


def baseline(row: Row[Any]) -> Baseline:
    """What a device did with the draft that it runs."""
    return Baseline(row.base_windows, row.base_total, row.base_square, tuple(row.base_latency))


def _window_row(arrived: Arrived) -> dict[str, Any]:
    message = arrived.message
    assert isinstance(message, Telemetry), "the caller looked"
    taken = asdict(message)
    names = ("requests", "tokens", "cloud_steps", "p50_ms", "p95_ms", "rtt_ms", "bytes_up", "bytes_down", "offline_s",
             "temperature_c", "memory_bytes")  # fmt: skip
    window = Window.of(arrived.device, message.tried, message.taken, message.token_ms)
    return {name: taken[name] for name in names} | {
        "device": arrived.device, "at": arrived.at, "sha256": message.active.sha256, "tried": list(message.tried),
        "taken": list(message.taken), "acceptance": window.acceptance,
    }  # fmt: skip


def forget_old(connection: Connection, before: float) -> int:
    """Remove telemetry older than that; returns how many windows."""
    return connection.execute(delete(telemetry).where(telemetry.c.at < before)).rowcount


def selection(device_class: str = "", group: str = "", *, connection: Connection) -> Select[Any]:
    """The devices of a class in a group (empty: all), by id.

    Raises:
        ConfigError: if there is no such group.
    """
    chosen = select(devices).order_by(devices.c.id)
    if device_class:
        chosen = chosen.where(devices.c.device_class == device_class)
    if group:
        found = connection.execute(select(groups).where(groups.c.name == group)).one_or_none()
        if found is None:
            raise ConfigError(f"no group {group!r}", hint="outrider fleet group list")
        if found.members:
            chosen = chosen.where(devices.c.id.in_(found.members))
        for key, value in found.labels.items():
            chosen = chosen.where(devices.c.labels[key].as_string() == value)
    return chosen


def set_group(connection: Connection, name: str, members: list[str], labels: dict[str, str]) -> None:
    """Make or replace a group: named devices, or all that carry these labels (also those that come later)."""
    connection.execute(delete(groups).where(groups.c.name == name))
    connection.execute(insert(groups).values(name=name, members=members, labels=labels))


def overview(connection: Connection, since: float) -> dict[str, Any]:
    """The fleet at a glance: counts, versions, and sums of the telemetry since then."""
    counts = connection.execute(
        select(func.count(), func.sum(devices.c.online.cast(devices.c.cpus.type)), func.avg(devices.c.acceptance))
    ).one()
    versions = connection.execute(
        select(devices.c.active_target, devices.c.active_name, func.count(), func.avg(devices.c.acceptance))
        .group_by(devices.c.active_target, devices.c.active_name)
        .order_by(func.count().desc())
    ).all()
    totals = connection.execute(
        select(func.sum(devices.c.tokens), func.sum(devices.c.cloud_steps), func.sum(devices.c.requests),
               func.sum(devices.c.lost))
    ).one()  # fmt: skip
    recent = connection.execute(
        select(func.sum(telemetry.c.tokens), func.sum(telemetry.c.cloud_steps), func.count()).where(
            telemetry.c.at >= since
        )
    ).one()
    return {
        "devices": counts[0], "online": int(counts[1] or 0), "acceptance": counts[2],
        "versions": [{"target": t, "name": n, "devices": c, "acceptance": a} for t, n, c, a in versions],
        "tokens": totals[0] or 0, "cloud_steps": totals[1] or 0, "requests": totals[2] or 0, "lost": totals[3] or 0,
        "recent": {"tokens": recent[0] or 0, "cloud_steps": recent[1] or 0, "windows": recent[2]},
        "at": time.time(),
    }  # fmt: skip


def mark_all_offline(connection: Connection) -> None:
    """Before the retained presence is read anew: what the broker does not say is not known."""
    connection.execute(update(devices).values(online=False))
