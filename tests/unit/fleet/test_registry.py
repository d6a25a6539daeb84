"""The registry's schema, who may write, and what the page is answered from."""

from __future__ import annotations

import random

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import event, insert, text

from outrider_cloud.fleet.registry import access, devices, tables
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.web.glance import Glance
from outrider_cloud.fleet.web.rollouts import troubled
from outrider_shared.errors import StorageError
from support.fleet import OLD, FakeDevice


@pytest.fixture
def database(tmp_path):
    made = Database(sqlite_url(tmp_path / "fleet.db"))
    yield made
    made.close()


def test_the_migrations_make_what_the_tables_say(database):
    with database.reading() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []


def test_a_registry_of_before_the_sums_by_the_minute_is_brought_up_to_date(database, tmp_path):
    window = {"device": "d", "sha256": OLD, "requests": 2, "tokens": 40, "cloud_steps": 9, "tried": [], "taken": [],
              "bytes_up": 0, "bytes_down": 0, "offline_s": 0.0}  # fmt: skip
    with database.transaction() as connection:
        connection.execute(insert(tables.telemetry), [{**window, "at": at} for at in (60.0, 119.9, 120.0)])
        for statement in (
            "DROP TABLE minutes", "DROP INDEX ix_devices_glance", "DROP INDEX ix_devices_online_id",
            "DROP INDEX ix_devices_target_id", "DROP INDEX ix_members_troubled",
            "CREATE INDEX ix_devices_online ON devices (online)",
            "UPDATE alembic_version SET version_num = '0001'",
        ):  # fmt: skip
            connection.execute(text(statement))
    database.close()
    again = Database(sqlite_url(tmp_path / "fleet.db"))
    with again.reading() as connection:
        assert devices.overview(connection, 0)["recent"] == {"tokens": 120, "cloud_steps": 27, "windows": 3}
        assert devices.overview(connection, 120)["recent"]["windows"] == 1
    again.close()


def test_who_reads_writes_nothing_and_waits_for_nobody(database):
    with pytest.raises(StorageError, match="readonly"), database.reading() as connection:
        access.note(connection, "ann", "x", "y")
    with database.transaction() as writer, database.reading() as reader:
        access.note(writer, "ann", "x", "y")
        assert reader.execute(tables.audit.select()).all() == []
    with database.transaction() as connection:
        access.note(connection, "ann", "x", "y")


def test_the_glance_reads_an_index_and_no_device(database):
    with database.reading() as connection:
        seen: list[str] = []
        event.listen(connection, "before_cursor_execute", lambda _c, _k, statement, *_rest: seen.append(statement))
        devices.overview(connection, 0)
        plans = [str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {seen[0]}").all())]
    assert "COVERING INDEX ix_devices_glance" in plans[0], plans
    assert "TEMP B-TREE" not in plans[0], plans


def test_troubled_devices_are_found_without_looking_at_the_others(database):
    with database.reading() as connection:
        asked = troubled("r1").compile(connection.engine)
        plan = str(connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked}", ("r1", 50, 0)).all())
    assert "ix_members_troubled" in plan, plan
    assert "TEMP B-TREE" not in plan, plan


def test_what_is_old_goes_piece_by_piece_with_its_sums(database):
    device = FakeDevice("d", {OLD: 0.8})
    batch = [*device.birth(), *(device.window(random.Random(0)) for _ in range(10))]
    with database.transaction() as connection:
        devices.take(connection, batch)
        assert [devices.forget_old(connection, 1e12, most=4) for _ in range(4)] == [4, 4, 2, 0]
        assert devices.overview(connection, 0)["recent"]["windows"] == 0
        assert devices.overview(connection, 0)["tokens"] == 2000, "totals of a device's life stay"


def test_one_computation_serves_all_who_look_for_ten_times_what_it_took(database):
    times = iter([0.0, 0.1, 1.0, 1.11, 1.2])
    glance = Glance(database, clock=lambda: next(times))
    first = glance.overview()
    assert glance.overview() is first, "at 1.0 s: good until 1.1 s"
    second = glance.overview()
    assert second is not first, "at 1.11 s"
