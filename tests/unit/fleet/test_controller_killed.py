"""A controller that is killed at any transaction ends where it would have, and counts nothing twice."""

import asyncio
import contextlib
import copy
import random
import shutil
from dataclasses import dataclass

import pytest
from sqlalchemy import select

from outrider_cloud.fleet.registry import devices, rollouts
from outrider_cloud.fleet.registry.database import Database, sqlite_url
from outrider_cloud.fleet.registry.tables import events, members
from outrider_cloud.fleet.rollout.spec import Gates, Stage
from support.fleet import BAD, GOOD, OLD, Fleet, spec, start


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
