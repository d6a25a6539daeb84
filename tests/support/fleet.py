"""Devices that answer a controller without a broker: they take published desired states and say what devices say."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.controller import Controller
from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import rollouts
from outrider_cloud.fleet.registry.database import Database
from outrider_cloud.fleet.rollout.spec import Gates, Spec, Stage
from outrider_shared.fleet.messages import (
    LATENCY_EDGES_MS,
    Info,
    PackRef,
    Presence,
    Telemetry,
    UpdateState,
    UpdateStatus,
)

if TYPE_CHECKING:
    from outrider_shared.fleet.desired import Desired

OLD, GOOD, BAD = "a" * 64, "b" * 64, "c" * 64
STAGES = (Stage(20, soak_s=0), Stage(60, soak_s=0), Stage(100, soak_s=0))


@dataclass
class FakeDevice:
    """One device; `fate` says what its next update comes to."""

    name: str
    accepts: dict[str, float]
    fate: str = "commit"  # commit, fail, silent
    active: PackRef = field(default_factory=lambda: PackRef("draft/int8/old", OLD))
    version: int = 0
    seq: int = 0
    status_seq: int = 0
    slow: int = 20

    def birth(self) -> list[Arrived]:
        info = Info(1, 1.0, "0.1", "test", "int8", "f" * 64, self.active)
        return [Arrived(self.name, Presence(True, 1, 1.0)), Arrived(self.name, info)]

    def window(self, rng: random.Random, tried: int = 100) -> Arrived:
        rate = self.accepts[self.active.sha256]
        taken = sum(rng.random() < rate for _ in range(tried))
        counts = [0] * (len(LATENCY_EDGES_MS) + 1)
        for _ in range(10):
            counts[self.slow + (rng.random() < 0.2)] += 1
        message = Telemetry(
            1, self.seq, 1.0, 30.0, self.active, requests=10, tokens=200, cloud_steps=60, tried=(tried,),
            taken=(taken,), token_ms=tuple(counts), p50_ms=10.0, p95_ms=20.0,
        )  # fmt: skip
        self.seq += 1
        return Arrived(self.name, message)

    def take(self, document: Desired) -> list[Arrived]:
        """What it says while it updates; the same document again is nothing."""
        if document.version <= self.version or document.assignment is None:
            return []
        self.version = document.version
        wanted = document.assignment
        if self.fate == "silent":
            return []
        said = [self.status(wanted, UpdateState.DOWNLOADING)]
        if self.fate == "fail" and not wanted.rollout.endswith("/back"):
            return [*said, self.status(wanted, UpdateState.FAILED, code="self_test")]
        self.active = PackRef(wanted.target, wanted.sha256)
        return [*said, self.status(wanted, UpdateState.PROBATION), self.status(wanted, UpdateState.COMMITTED)]

    def status(self, wanted, state: UpdateState, code: str = "") -> Arrived:
        self.status_seq += 1
        message = UpdateStatus(wanted.rollout, wanted.attempt, wanted.target, state, self.status_seq, 1.0, code=code)
        return Arrived(self.name, message)


class FakePlane:
    """Delivers at once, every document twice (a broker may)."""

    def __init__(self, devices: dict[str, FakeDevice]) -> None:
        self.devices, self.births = devices, 1
        self.said: list[Arrived] = []

    async def publish_desired(self, document: Desired) -> None:
        for _ in range(2):
            self.said += self.devices[document.device].take(document)


class Fleet:
    """Devices, registry and controller; `run` rounds with every device reporting once per round."""

    def __init__(self, dsn: str, devices: int = 20, seed: int = 0, **accepts: float) -> None:
        rates = {OLD: 0.8, GOOD: 0.82, BAD: 0.6} | accepts
        self.rng = random.Random(seed)
        self.database = Database(dsn)
        self.controller = Controller(self.database)
        self.devices = {f"dev-{i:03}": FakeDevice(f"dev-{i:03}", rates) for i in range(devices)}
        self.plane = FakePlane(self.devices)

    def restart(self) -> None:
        """The controller dies and another one comes up on the same registry."""
        self.controller = Controller(self.database)

    async def births(self, windows: int = 25) -> None:
        batch = [arrived for device in self.devices.values() for arrived in device.birth()]
        for _ in range(windows):
            batch += [device.window(self.rng) for device in self.devices.values()]
        await self.controller.arrived(batch)

    async def step(self) -> None:
        await self.controller.tick()
        await self.controller.publish(self.plane)
        said, self.plane.said = self.plane.said, []
        said += [device.window(self.rng) for device in self.devices.values() if device.fate != "silent"]
        await self.controller.arrived(said)

    async def until(self, *states: str, name: str = "r1", most: int = 400):
        for _ in range(most):
            await self.step()
            with self.database.transaction() as connection:
                row = rollouts.load(connection, name)
            if row.state in states:
                return row
        raise AssertionError(
            f"still {row.state}/{row.stage}/{row.stage_state}: {row.waits_for} {row.reason} {time.time()}"
        )


def spec(sha256: str = GOOD, **changes: Any) -> Spec:
    """A roll-out that does not wait for time to pass."""
    values: dict[str, Any] = {
        "stages": STAGES,
        "per_minute": 1e6,
        "control_percent": 20.0,
        "gates": Gates(min_pairs=40),
    }
    return Spec("r1", f"draft/int8/{sha256[0]}", sha256, "int8", **values | changes)


def start(fleet: Fleet, wanted: Spec) -> None:
    """Make a roll-out and submit it."""
    with fleet.database.transaction() as connection:
        rollouts.create(connection, wanted, "ann")
        rollouts.submit(connection, wanted.name, "ann")
