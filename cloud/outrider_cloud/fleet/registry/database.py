"""Connections to the registry, and bringing its schema up to date.

SQLite runs with a write-ahead log and one writer; what is committed survives a crash of this process, and of the
machine but for the last moments (`synchronous=NORMAL`): devices say their state again, so nothing is lost for good.

A `transaction` takes the writer's lock at once, so that two never wait for each other in a circle. `reading` takes no
lock: it sees the registry as it was at its first query, however long the writer takes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from outrider_shared.errors import ConfigError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

MIGRATIONS = Path(__file__).parent / "migrations"
_READING = "outrider_reading"


def sqlite_url(path: Path) -> str:
    """The DSN of a file."""
    return f"sqlite:///{path}"


class Database:
    """The registry's database, at the newest schema.

    Args:
        dsn: `sqlite:///PATH` or `postgresql://USER:PASSWORD@HOST/NAME`.

    Raises:
        ConfigError: if the DSN is malformed or of another kind of database.
        StorageError: if the database cannot be opened or upgraded.
    """

    def __init__(self, dsn: str) -> None:
        self.engine = _engine(dsn)
        try:
            with self.engine.begin() as connection:
                upgrade(connection)
        except SQLAlchemyError as error:
            raise StorageError(
                f"the registry cannot be opened: {_said(error)}", hint="check the DSN and the disk"
            ) from error

    @property
    def dialect(self) -> str:
        """Name of the kind of database: sqlite or postgresql."""
        return self.engine.dialect.name

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One transaction: all or nothing.

        Raises:
            StorageError: if the database refuses (full, gone, read-only).
        """
        try:
            with self.engine.begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise StorageError(f"the registry did not take it: {_said(error)}") from error

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """One moment of the registry (PostgreSQL: of each query), to be read only.

        Raises:
            StorageError: if the database is gone, or something is written all the same.
        """
        try:
            with self.engine.connect() as connection:
                connection.execution_options(**{_READING: True, "postgresql_readonly": True})
                with connection.begin():
                    yield connection
        except SQLAlchemyError as error:
            raise StorageError(f"the registry cannot be read: {_said(error)}") from error

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def upgrade(connection: Connection) -> None:
    """Run the migrations that this database has not seen."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _engine(dsn: str) -> Engine:
    try:
        url = make_url(dsn)
    except ArgumentError:
        raise ConfigError("the registry's DSN is malformed", hint="such as sqlite:///fleet.db") from None
    kind = url.get_backend_name()
    if kind == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    elif kind != "sqlite":
        raise ConfigError(f"a registry in {kind!r} is not supported", hint="use sqlite or postgresql")
    try:
        engine = create_engine(url, pool_pre_ping=kind == "postgresql")
    except (NoSuchModuleError, ImportError) as error:
        raise ConfigError(f"no driver for {kind}: {error}", hint="pip install 'outrider[fleet]'") from error
    if kind == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late; see the listener on "begin"
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "busy_timeout=10000",
        "foreign_keys=ON",
        "cache_size=-65536",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get(_READING, False)
    connection.exec_driver_sql(f"PRAGMA query_only={int(reading)}")
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _said(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
