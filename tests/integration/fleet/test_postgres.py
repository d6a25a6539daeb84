"""The registry in a real PostgreSQL: migrations, what devices say, roll-outs, and a controller that is killed."""

from __future__ import annotations

import asyncio

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, insert, select, text

from outrider_cloud.fleet.registry import access, desired, devices, rollouts, tables, webhooks
from outrider_cloud.fleet.registry.database import Database
from outrider_cloud.fleet.rollout.spec import Gates, Spec, Stage
from outrider_shared.errors import StorageError
from support.fleet import BAD, GOOD, OLD, Fleet
from support.postgres import postgres

STAGES = (Stage(20, soak_s=0), Stage(100, soak_s=0))


@pytest.fixture(scope="module")
def server():
    with postgres() as dsn:
        yield dsn


@pytest.fixture
def dsn(server):
    """Every test begins with an empty database."""
    import psycopg

    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    return server


@pytest.fixture
def fleet(dsn):
    made = Fleet(dsn, devices=12)
    yield made
    made.database.close()


def start(fleet: Fleet, sha256: str) -> None:
    wanted = Spec(
        "r1", f"draft/int8/{sha256[0]}", sha256, "int8", stages=STAGES, per_minute=1e6, control_percent=25.0,
        gates=Gates(min_pairs=20),
    )  # fmt: skip
    with fleet.database.transaction() as connection:
        rollouts.submit(connection, rollouts.create(connection, wanted, "ann"), "ann")


def test_the_migrations_make_what_the_tables_say_and_run_once(dsn):
    for _ in range(2):
        database = Database(dsn)
        assert database.dialect == "postgresql"
        with database.reading() as connection:
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        database.close()


def test_who_reads_writes_nothing(fleet):
    with pytest.raises(StorageError, match="read-only"), fleet.database.reading() as connection:
        access.note(connection, "ann", "x", "y")


def test_a_good_draft_reaches_every_device_through_a_controller_that_restarts(fleet):
    async def run():
        await fleet.births()
        start(fleet, GOOD)
        for _ in range(3):
            await fleet.step()
        fleet.restart()
        await fleet.until("succeeded")

    asyncio.run(run())
    assert {device.active.sha256 for device in fleet.devices.values()} == {GOOD}
    with fleet.database.reading() as connection:
        for device in connection.execute(select(devices.devices)):
            assert device.requests == 10 * (device.tele_seq + 1)
        seen = devices.overview(connection, 0)
        assert (seen["devices"], seen["online"], [v["devices"] for v in seen["versions"]]) == (12, 12, [12])
        assert seen["recent"]["windows"] == connection.execute(select(func.count(tables.telemetry.c.id))).scalar_one()
        assert seen["recent"]["tokens"] == seen["tokens"] > 0


def test_a_bad_draft_goes_back(fleet):
    async def run():
        await fleet.births()
        start(fleet, BAD)
        return await fleet.until("rolled_back")

    assert asyncio.run(run()).gate == "acceptance"
    assert {device.active.sha256 for device in fleet.devices.values()} == {OLD}


def test_settings_groups_tokens_and_what_webhooks_are_owed(fleet):
    asyncio.run(fleet.births(1))
    with fleet.database.transaction() as connection:
        desired.change(connection, "dev-000", config={"telemetry_s": 5.0})
        desired.change(connection, "dev-000", config={"log_lines": 50})
        (document,) = desired.pending(connection, epoch=1)
        assert (document.version, document.config.telemetry_s) == (2, 5.0)
        connection.execute(tables.devices.update().where(tables.devices.c.id == "dev-003").values(labels={"site": "n"}))
        devices.set_group(connection, "north", [], {"site": "n"})
        chosen = devices.selection("int8", "north", connection=connection)
        assert [row.id for row in connection.execute(chosen)] == ["dev-003"]
        token = access.new_token(connection, "ann", access.Role.OPERATOR)
        assert access.who(connection, token) == ("ann", access.Role.OPERATOR)
        connection.execute(insert(tables.webhooks).values(name="w", url="http://127.0.0.1:9/", secret="s", kinds=[]))
        webhooks.tell(connection, "rollout.paused", {"rollout": "r1"})
        (owed,) = webhooks.due(connection)
        webhooks.failed(connection, owed.id, owed.attempts, "away")
        assert webhooks.due(connection) == []
        assert devices.forget_old(connection, 1e12) == 12


def test_a_server_that_is_away_is_a_named_error_and_is_found_again(fleet):
    import psycopg

    with psycopg.connect(str(fleet.database.engine.url).replace("+psycopg", ""), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
    with fleet.database.transaction() as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
