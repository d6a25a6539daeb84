"""The controller on a real registry, with devices that answer as devices do."""

import asyncio

import pytest
from sqlalchemy import func, select

from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import desired, devices, rollouts
from outrider_cloud.fleet.registry.tables import audit, members
from outrider_cloud.fleet.rollout.spec import Gates, OnBreach, Stage
from outrider_shared.errors import ConflictError, RefusedError
from outrider_shared.fleet.desired import Assignment
from outrider_shared.fleet.messages import Reported, UpdateState
from support.fleet import BAD, GOOD, OLD, FakeDevice, Fleet, spec, start


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
