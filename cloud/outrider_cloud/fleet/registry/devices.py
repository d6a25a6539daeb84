"""Devices: what they said last, what they did, and the groups they are in.

`take` is the one way in for what devices say. It may see a message twice (a controller that died before it
acknowledged) and counts it once: the numbers it compares with stand in the same row and change in one transaction.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from outrider_cloud.fleet.registry.tables import desired, devices, groups, members, minutes, rollouts, telemetry
from outrider_cloud.fleet.rollout.evidence import Baseline, Window
from outrider_cloud.fleet.rollout.states import RolloutState
from outrider_shared.errors import ConfigError
from outrider_shared.fleet.messages import Info, Presence, Reported, Telemetry, UpdateStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Connection, Row, Select

    from outrider_cloud.fleet.plane import Arrived

_SMOOTH = 0.2
_SUMMED = ("requests", "tokens", "cloud_steps")


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
        _add_minutes(connection, windows)
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


def _add_minutes(connection: Connection, windows: Sequence[Mapping[str, Any]]) -> None:
    """Sums by the minute, so that the last hour of many devices is read from sixty rows."""
    sums: dict[int, Counter[str]] = defaultdict(Counter)
    for window in windows:
        sums[int(window["at"] // 60)].update({"windows": 1, **{name: window[name] for name in _SUMMED}})
    make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    for minute, added in sorted(sums.items()):
        more = {minutes.c[name]: minutes.c[name] + added[name] for name in ("windows", *_SUMMED)}
        statement = make(minutes).values(minute=minute, **{name: added[name] for name in ("windows", *_SUMMED)})
        connection.execute(statement.on_conflict_do_update(index_elements=["minute"], set_=more))


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


def forget(connection: Connection, device: str) -> bool:
    """Remove a device that left the fleet, and from roll-outs that are not over; False if it is not known."""
    over = select(rollouts.c.id).where(rollouts.c.state.in_([state for state in RolloutState if state.final]))
    connection.execute(delete(members).where((members.c.device == device) & members.c.rollout.not_in(over)))
    connection.execute(delete(desired).where(desired.c.device == device))
    return bool(connection.execute(delete(devices).where(devices.c.id == device)).rowcount)


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
    for name in _SUMMED:
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


def forget_old(connection: Connection, before: float, most: int = 20_000) -> int:
    """Remove telemetry older than that, the oldest first; returns how many windows.

    At most so many: a transaction that removes a day of a large fleet would keep every message waiting.
    """
    connection.execute(delete(minutes).where(minutes.c.minute < int(before // 60)))
    old = select(telemetry.c.id).where(telemetry.c.at < before).order_by(telemetry.c.at).limit(most)
    return connection.execute(delete(telemetry).where(telemetry.c.id.in_(old.scalar_subquery()))).rowcount


def check_known(connection: Connection, device: str) -> Row[Any]:
    """The row of a device.

    Raises:
        ConfigError: if none of that name was ever here.
    """
    row = connection.execute(select(devices).where(devices.c.id == device)).one_or_none()
    if row is None:
        raise ConfigError(f"no device {device!r} was ever here", hint="outrider fleet device list")
    return row


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
    """The fleet at a glance: counts, versions, and sums of the telemetry since then (to the minute)."""
    column = devices.c
    versions = connection.execute(
        select(
            column.active_target, column.active_name, func.count(), func.sum(column.online.cast(column.cpus.type)),
            func.count(column.acceptance), func.sum(column.acceptance), func.sum(column.tokens),
            func.sum(column.cloud_steps), func.sum(column.requests), func.sum(column.lost),
        ).group_by(column.active_target, column.active_name)
    ).all()  # fmt: skip
    recent = connection.execute(
        select(func.sum(minutes.c.tokens), func.sum(minutes.c.cloud_steps), func.sum(minutes.c.windows)).where(
            minutes.c.minute >= int(since // 60)
        )
    ).one()
    # Sums come as Decimal from PostgreSQL.
    totals = [sum(row[place] or 0 for row in versions) for place in range(2, 10)]
    return {
        "devices": int(totals[0]), "online": int(totals[1]), "acceptance": _mean(totals[3], totals[2]),
        "versions": [
            {"target": row[0], "name": row[1], "devices": row[2], "acceptance": _mean(row[5], row[4])}
            for row in sorted(versions, key=lambda row: (-row[2], row[0]))
        ],
        "tokens": int(totals[4]), "cloud_steps": int(totals[5]), "requests": int(totals[6]), "lost": int(totals[7]),
        "recent": dict(zip(("tokens", "cloud_steps", "windows"), (int(value or 0) for value in recent), strict=True)),
        "at": time.time(),
    }  # fmt: skip


def _mean(total: float | None, count: int) -> float | None:
    return float(total) / count if total is not None and count else None
