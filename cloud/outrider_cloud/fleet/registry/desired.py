"""What each device is to be.

Numbers only grow; what was not published yet is `pending` and goes out again after a crash.
"""

from __future__ import annotations

import time
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from outrider_cloud.fleet.registry.tables import desired, devices
from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.fleet.codec import check
from outrider_shared.fleet.desired import Assignment, Config, Desired

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection, Row

_KEEP: Any = object()
_AT_ONCE = 500


def change(
    connection: Connection, device: str, *, config: dict[str, Any] | None = None, assignment: Assignment | None = _KEEP
) -> int:
    """Give a device a new document; returns its number. What is not given stays as it is.

    Raises:
        ConfigError: if the configuration is not one.
    """
    return change_many(connection, [device], config=config, assignment=assignment)[device]


def change_many(
    connection: Connection,
    names: Sequence[str],
    *,
    config: dict[str, Any] | None = None,
    assignment: Assignment | None = _KEEP,
) -> dict[str, int]:
    """The same change for many devices; returns the number of each one's new document.

    Raises:
        ConfigError: if the configuration is not one.
    """
    read_config(config or {})
    numbers: dict[str, int] = {}
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        known = {row.device: row for row in connection.execute(select(desired).where(desired.c.device.in_(part)))}
        rows = [_changed(device, known.get(device), config, assignment) for device in part]
        make = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        statement = make(desired)
        names_set = ("version", "config", "assignment", "issued", "pending")
        replaced = {name: statement.excluded[name] for name in names_set}
        connection.execute(statement.on_conflict_do_update(index_elements=["device"], set_=replaced), rows)
        numbers |= {row["device"]: row["version"] for row in rows}
    return numbers


def _changed(
    device: str, row: Row[Any] | None, config: dict[str, Any] | None, assignment: Assignment | None
) -> dict[str, Any]:
    merged = (row.config if row is not None else {}) | (config or {})
    read_config(merged)
    stored = row.assignment if row is not None else None
    if assignment is not _KEEP:
        stored = asdict(assignment) if assignment is not None else None
    return {
        "device": device, "version": (row.version if row is not None else 0) + 1, "config": merged,
        "assignment": stored, "issued": time.time(), "pending": True, "published": 0,
    }  # fmt: skip


def read_config(stored: dict[str, Any]) -> Config:
    """The typed configuration.

    Raises:
        ConfigError: naming the setting that is unknown or out of range.
    """
    hint = f"settings: {', '.join(field.name for field in fields(Config))}"
    unknown = sorted(stored.keys() - {field.name for field in fields(Config)})
    if unknown:
        raise ConfigError(f"no setting of a device: {', '.join(unknown)}", hint=hint)
    try:
        return check(Config, stored)
    except ProtocolError as error:
        raise ConfigError(error.message.replace("Config.", "setting "), hint=hint) from error


def assignment_of(connection: Connection, device: str) -> Assignment | None:
    """The draft that a device was last told to run."""
    stored = connection.execute(select(desired.c.assignment).where(desired.c.device == device)).scalar_one_or_none()
    return Assignment(**stored) if stored else None


def pending(connection: Connection, epoch: int, most: int = 200) -> list[Desired]:
    """Documents to be published, oldest first."""
    rows = connection.execute(select(desired).where(desired.c.pending).order_by(desired.c.issued).limit(most))
    return [
        Desired(
            row.device, epoch, row.version, row.issued, read_config(row.config),
            Assignment(**row.assignment) if row.assignment else None,
        )
        for row in rows
    ]  # fmt: skip


def published(connection: Connection, device: str, version: int) -> None:
    """The broker has it; a newer one may wait already."""
    mine = (desired.c.device == device) & (desired.c.version == version)
    connection.execute(update(desired).where(mine).values(pending=False, published=version))


def publish_again(connection: Connection) -> None:
    """After a broker that may have lost what it took: what no device reported yet is sent again, as it was."""
    applied = select(devices.c.applied_version).where(devices.c.id == desired.c.device).scalar_subquery()
    connection.execute(update(desired).where(desired.c.version > func.coalesce(applied, 0)).values(pending=True))
