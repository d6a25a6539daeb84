"""The controller on a real registry, with devices that answer as devices do."""

import asyncio
import contextlib
import copy
import random
import shutil
from dataclasses import dataclass

import pytest
from sqlalchemy import func, select

from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import access, desired, devices, rollouts
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.registry.tables import audit, deliveries, events, members, webhooks
from outrider_cloud.fleet.rollout.spec import Gates, OnBreach, Spec, Stage
from outrider_shared.errors import ConfigError, ConflictError, RefusedError
from outrider_shared.fleet.desired import Assignment
from outrider_shared.fleet.messages import Reported, UpdateState
from support.fleet import BAD, GOOD, OLD, FakeDevice, Fleet

STAGES = (Stage(20, soak_s=0), Stage(60, soak_s=0), Stage(100, soak_s=0))


def spec(sha256: str = GOOD, **changes) -> Spec:
    values = {"stages": STAGES, "per_minute": 1e6, "control_percent": 20.0, "gates": Gates(min_pairs=40)} | changes
    return Spec("r1", f"draft/int8/{sha256[0]}", sha256, "int8", **values)


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(sqlite_url(tmp_path / "fleet.db"))
    yield made
    made.database.close()


def start(fleet: Fleet, wanted: Spec) -> None:
    with fleet.database.transaction() as connection:
        rollouts.create(connection, wanted, "ann")
        rollouts.submit(connection, wanted.name, "ann")


def states(fleet: Fleet) -> dict[str, int]:
    with fleet.database.transaction() as connection:
        rows = connection.execute(select(members.c.state, func.count()).group_by(members.c.state))
        return dict(rows.all())


def test_a_good_draft_reaches_every_device(fleet):
    async def run():
        await fleet.births()
        start(fleet, spec())
        await fleet.until("succeeded")

    asyncio.run(run())
    assert states(fleet) == {"committed": 20}
    assert {device.active.sha256 for device in fleet.devices.values()} == {GOOD}


def test_a_draft_that_is_accepted_less_stops_at_the_canary_and_goes_back(fleet):
    async def run():
        await fleet.births()
        start(fleet, spec(BAD))
        return await fleet.until("rolled_back")

    row = asyncio.run(run())
    assert row.gate == "acceptance"
    assert "below control's" in row.reason
    assert row.stage == 0
    assert {device.active.sha256 for device in fleet.devices.values()} == {OLD}
    assert states(fleet)["reverted"] == 4


def test_a_first_stage_of_one_device_that_fails_is_no_success(fleet):
    async def run():
        await fleet.births()
        for device in fleet.devices.values():
            device.fate = "fail"
        start(fleet, spec(stages=(Stage(5, soak_s=0), Stage(100, soak_s=0))))
        return await fleet.until("rolled_back")

    row = asyncio.run(run())
    assert (row.gate, row.stage) == ("failed", 0)
    assert "1 of 1 devices failed" in row.reason


def test_on_breach_pause_leaves_the_canary_and_waits_for_a_person(fleet):
    async def run():
        await fleet.births()
        start(fleet, spec(BAD, on_breach=OnBreach.PAUSE))
        await fleet.until("paused")
        with fleet.database.transaction() as connection:
            rollouts.roll_back(connection, "r1", "ann")
        await fleet.until("rolled_back")

    asyncio.run(run())
    assert {device.active.sha256 for device in fleet.devices.values()} == {OLD}


def test_failing_devices_break_the_gate_and_were_tried_twice(fleet):
    async def run():
        await fleet.births()
        for device in fleet.devices.values():
            device.fate = "fail"
        start(fleet, spec(gates=Gates(min_pairs=0)))
        return await fleet.until("rolled_back")

    row = asyncio.run(run())
    assert row.gate == "failed"
    with fleet.database.transaction() as connection:
        assert connection.execute(select(audit).where(audit.c.action == "update.failed")).first().detail["code"]


def test_silent_devices_time_out_and_are_no_success(fleet):
    async def run():
        await fleet.births()
        for device in fleet.devices.values():
            device.fate = "silent"
        start(fleet, spec(timeout_s=0.05, gates=Gates(min_pairs=0)))
        return await fleet.until("rolled_back")

    assert asyncio.run(run()).gate == "silent"
    assert states(fleet)["timed_out"] == 4, "nobody waits for them for ever"


def test_a_device_that_was_silent_goes_back_when_it_is_there_again(fleet):
    async def run():
        await fleet.births()
        for device in fleet.devices.values():
            device.fate = "silent"
        start(fleet, spec(timeout_s=0.05, gates=Gates(min_pairs=0)))
        await fleet.until("rolled_back")
        with fleet.database.transaction() as connection:
            told = connection.execute(select(members.c.device, members.c.attempt).where(members.c.attempt > 0)).all()
        for name, attempt in told:
            back = Assignment("r1/back", attempt, "draft/int8/old", OLD)
            await fleet.controller.arrived([fleet.devices[name].status(back, UpdateState.COMMITTED)])

    asyncio.run(run())
    assert states(fleet)["reverted"] == 4


def test_a_second_person_has_to_agree(fleet):
    with fleet.database.transaction() as connection:
        rollouts.create(connection, spec(approvals=2), "ann")
        assert rollouts.submit(connection, "r1", "ann") == "awaiting_approval"
        with pytest.raises(RefusedError, match="ann made this"):
            rollouts.approve(connection, "r1", "ann")
        assert rollouts.approve(connection, "r1", "bob") == "awaiting_approval"
        with pytest.raises(RefusedError, match="already"):
            rollouts.approve(connection, "r1", "bob")
        assert rollouts.approve(connection, "r1", "eve") == "scheduled"
        with pytest.raises(ConflictError, match="cannot become denied"):
            rollouts.approve(connection, "r1", "eve", deny=True)


def test_a_stage_waits_for_its_approval(fleet):
    async def run():
        await fleet.births()
        start(fleet, spec(stages=(Stage(20, 0, approval=True), Stage(100, 0))))
        for _ in range(40):
            await fleet.step()
        with fleet.database.transaction() as connection:
            assert rollouts.load(connection, "r1").waits_for == "an approval"
            rollouts.approve(connection, "r1", "bob")
        await fleet.until("succeeded")

    asyncio.run(run())


def test_a_device_that_comes_late_takes_part(fleet):
    async def run():
        await fleet.births()
        start(fleet, spec())
        await fleet.step()
        late = FakeDevice("late", next(iter(fleet.devices.values())).accepts)
        fleet.devices["late"] = late
        await fleet.controller.arrived(late.birth())
        await fleet.until("succeeded")

    asyncio.run(run())
    assert fleet.devices["late"].active.sha256 == GOOD


def test_aborted_devices_keep_what_they_have_and_nothing_further_is_told(fleet):
    async def run():
        await fleet.births()
        start(fleet, spec(per_minute=1, growth=1))
        for _ in range(3):
            await fleet.step()
        with fleet.database.transaction() as connection:
            rollouts.abort(connection, "r1", "ann")
        for _ in range(3):
            await fleet.step()

    asyncio.run(run())
    assert states(fleet)["committed"] == 1


@dataclass
class Killing:
    """Transactions of a controller; number `at` is its last: committed or not, as `committed` says."""

    at: int | None = None
    committed: bool = False
    count: int = 0

    def install(self, monkeypatch, original=Database.transaction) -> None:
        @contextlib.contextmanager
        def transaction(database):
            number, self.count = self.count, self.count + 1
            with original(database) as connection:
                yield connection
                if number == self.at and not self.committed:
                    raise Killed
            if number == self.at:
                raise Killed

        monkeypatch.setattr(Database, "transaction", transaction)


async def to_the_end(fleet: Fleet) -> list[str]:
    """Rounds until the roll-out ended, with another controller whenever one is killed; the states seen on the way."""
    seen: list[str] = []
    for _ in range(60):
        try:
            await fleet.controller.tick()
            await fleet.controller.publish(fleet.plane)
        except Killed:
            fleet.restart()
        said, fleet.plane.said = fleet.plane.said, []
        batch = [*said, *(device.window(fleet.rng) for device in fleet.devices.values())]
        try:
            await fleet.controller.arrived(batch)
        except Killed:  # QoS 1: what was not acknowledged comes again
            fleet.restart()
            await fleet.controller.arrived(batch)
        with fleet.database.reading() as connection:
            row = rollouts.load(connection, "r1")
        seen.append(f"{row.state}/{row.stage_state}")
        if row.state in {"succeeded", "rolled_back"}:
            return seen
    raise AssertionError(seen)


@pytest.mark.parametrize("fate", ["commit", "fail"])
def test_a_controller_killed_in_every_transaction_goes_on_and_counts_nothing_twice(tmp_path, monkeypatch, fate):
    """Every one of them, once lost and once committed: each transition of a roll-out is among them."""
    made = Fleet(sqlite_url(tmp_path / "made.db"), devices=5)
    for device in made.devices.values():
        device.fate = fate
    stages = (Stage(40, soak_s=0), Stage(100, soak_s=0))
    asyncio.run(made.births(5))
    start(made, spec(stages=stages, attempts=1, gates=Gates(min_pairs=0)))
    made.database.close()

    def run(killing: Killing, name: str) -> list[str]:
        shutil.copy(tmp_path / "made.db", tmp_path / name)
        with monkeypatch.context() as patch:
            fleet = Fleet(sqlite_url(tmp_path / name), devices=0)
            fleet.devices.update(copy.deepcopy(made.devices))
            killing.install(patch)
            seen = asyncio.run(to_the_end(fleet))
        with fleet.database.reading() as connection:
            told = connection.execute(select(events.c.what)).scalars().all()
            attempts = set(connection.execute(select(members.c.attempt)).scalars())
            found = connection.execute(select(devices.devices)).all()
        fleet.database.close()
        assert len(told) == len(set(told)), "what happened is noted once"
        assert attempts <= {0, 1}, "nobody is told twice"
        assert {row.requests for row in found} == {10 * fleet.devices["dev-000"].seq}, "every window counts once"
        assert {row.lost for row in found} == {0}
        assert {d.active.sha256 for d in fleet.devices.values()} == {GOOD if fate == "commit" else OLD}
        return seen

    whole = Killing()
    ended = run(whole, "whole.db")[-1]
    assert whole.count > 10
    for at in range(whole.count):
        for committed in (False, True):
            assert run(Killing(at, committed), f"{at}-{committed}.db")[-1] == ended


class Killed(BaseException):  # no handler of the program runs
    """The controller's death, for tests."""


def test_a_controller_killed_at_any_transaction_ends_where_it_would_have(tmp_path, monkeypatch):
    """One transaction in eight is lost and one in eight is committed, and then the process is gone."""
    fleet = Fleet(sqlite_url(tmp_path / "fleet.db"))
    original, lot = Database.transaction, random.Random(0)

    @contextlib.contextmanager
    def transaction(self):
        fate = lot.randrange(8)
        with original(self) as connection:
            yield connection
            if fate == 0:
                raise Killed
        if fate == 1:
            raise Killed

    async def take(batch):
        """QoS 1: what was not acknowledged comes again."""
        while True:
            try:
                return await fleet.controller.arrived(batch)
            except Killed:
                fleet.restart()

    async def run():
        await fleet.births()
        start(fleet, spec(BAD))
        monkeypatch.setattr(Database, "transaction", transaction)
        for _ in range(900):
            try:
                await fleet.controller.tick()
                await fleet.controller.publish(fleet.plane)
            except Killed:
                fleet.restart()
            said, fleet.plane.said = fleet.plane.said, []
            await take([*said, *(device.window(fleet.rng) for device in fleet.devices.values())])
            with original(fleet.database) as connection:
                row = rollouts.load(connection, "r1")
            if row.state in {"succeeded", "rolled_back"}:
                return row
        raise AssertionError(row)

    row = asyncio.run(run())
    assert (row.state, row.gate) == ("rolled_back", "acceptance")
    assert {device.active.sha256 for device in fleet.devices.values()} == {OLD}
    with original(fleet.database) as connection:
        for device in connection.execute(select(devices.devices)):
            assert device.requests == 10 * (device.tele_seq + 1), "no window is counted twice or lost"
    fleet.database.close()


def test_a_repeated_batch_changes_nothing(fleet):
    async def run():
        batch = [fleet.devices["dev-000"].window(fleet.rng) for _ in range(5)]
        await fleet.controller.arrived(batch)
        await fleet.controller.arrived(batch)
        del batch[2]
        gap = [fleet.devices["dev-001"].window(fleet.rng) for _ in range(5)]
        del gap[1:3]
        await fleet.controller.arrived(gap)

    asyncio.run(run())
    with fleet.database.transaction() as connection:
        first, second = connection.execute(select(devices.devices).order_by(devices.devices.c.id)).all()
        assert (first.requests, first.lost, second.lost) == (50, 0, 2)
        assert devices.overview(connection, 0)["tokens"] == 8 * 200
    assert fleet.controller.counters.repeats == 5


def test_webhooks_are_owed_what_they_asked_for(fleet):
    with fleet.database.transaction() as connection:
        row = {"name": "w", "url": "http://127.0.0.1:9/", "secret": "s", "kinds": ["rollout.denied"]}
        connection.execute(webhooks.insert().values(**row))
        rollouts.create(connection, spec(approvals=1), "ann")
        rollouts.submit(connection, "r1", "ann")
        rollouts.approve(connection, "r1", "bob", deny=True)
        (owed,) = connection.execute(select(deliveries)).all()
        assert owed.body["kind"] == "rollout.denied"
        assert connection.execute(select(func.count()).select_from(events)).scalar_one() == 3


def test_tokens_are_kept_as_digests_and_roles_are_ordered(fleet):
    with fleet.database.transaction() as connection:
        token = access.new_token(connection, "ann", access.Role.OPERATOR)
        assert access.who(connection, token) == ("ann", access.Role.OPERATOR)
        assert access.who(connection, token + "x") is None
        assert access.new_token(connection, "old", access.Role.VIEWER, days=-1)
        with pytest.raises(ConfigError, match="exists"):
            access.new_token(connection, "ann", access.Role.VIEWER)
        assert access.revoke(connection, "ann")
        assert access.who(connection, token) is None
    assert access.Role.APPROVER.allows(access.Role.OPERATOR)
    assert not access.Role.VIEWER.allows(access.Role.OPERATOR)


def test_settings_that_are_none_are_refused_and_numbers_only_grow(fleet):
    with fleet.database.transaction() as connection:
        assert desired.change(connection, "d", config={"telemetry_s": 5.0}) == 1
        assert desired.change(connection, "d", config={"log_lines": 50}) == 2
        (document,) = desired.pending(connection, epoch=1)
        assert (document.config.telemetry_s, document.config.log_lines) == (5.0, 50)
        for wrong in ({"colour": "red"}, {"telemetry_s": "soon"}, {"telemetry_s": 0.0}, {"window": {"start_s": -1}}):
            with pytest.raises(ConfigError, match=next(iter(wrong))):
                desired.change_many(connection, [], config=wrong)
        desired.published(connection, "d", 1)
        assert desired.pending(connection, epoch=1), "a newer one waits still"


def test_what_a_killed_broker_had_taken_is_published_again_until_a_device_reports_it(fleet):
    async def run():
        await fleet.births(0)
        with fleet.database.transaction() as connection:
            desired.change_many(connection, ["dev-000", "dev-001"], config={"log_lines": 5})
        assert await fleet.controller.publish(fleet.plane) == 2
        reported = Reported(1, 0, 1.0, 1, 1, fleet.devices["dev-001"].active)
        await fleet.controller.arrived([Arrived("dev-001", reported)])
        assert await fleet.controller.publish(fleet.plane) == 0
        fleet.plane.births += 1
        assert await fleet.controller.publish(fleet.plane) == 1

    asyncio.run(run())


def test_groups_by_name_and_by_label(fleet):
    with fleet.database.transaction() as connection:
        with pytest.raises(ConfigError, match="no group"):
            devices.selection("", "north", connection=connection)
        devices.set_group(connection, "north", [], {"site": "n"})
        assert connection.execute(devices.selection("", "north", connection=connection)).all() == []


@pytest.mark.parametrize("dsn", ["nonsense", "mysql://x/y"])
def test_a_dsn_of_another_kind_is_refused(dsn):
    with pytest.raises(ConfigError):
        Database(dsn)
