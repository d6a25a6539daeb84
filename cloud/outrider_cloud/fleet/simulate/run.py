"""A simulated fleet: enrols what is missing, connects at a bounded rate, runs, and tells what happened."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.simulate.device import Identity, SimulatedDevice, Tally
from outrider_shared.fleet.mqtt import MqttBroker, MqttConfig
from outrider_shared.fleet.signed import Trust
from outrider_shared.ids import parse_device_id

if TYPE_CHECKING:
    from outrider_cloud.fleet.home import FleetHome
    from outrider_cloud.fleet.simulate.behaviour import Behaviour

TOKENIZER = "0" * 64


@dataclass(frozen=True, slots=True)
class Plan:
    """How many, how long.

    Attributes:
        devices: How many.
        prefix: Of their names, which end with a number.
        seconds: How long; None runs until it is ended.
        connects_s: Devices that begin per second.
        telemetry_s: Window of telemetry; None takes what is desired.
        seed: Of chance.
    """

    devices: int = 50
    prefix: str = "sim"
    seconds: float | None = None
    connects_s: float = 100.0
    telemetry_s: float | None = None
    seed: int = 0

    def names(self) -> list[str]:
        """Of the devices."""
        return [f"{self.prefix}-{i:05d}" for i in range(self.devices)]


async def simulate(
    home: FleetHome, plan: Plan, behaviour: Behaviour, ended: asyncio.Event | None = None
) -> dict[str, Any]:
    """Run the plan, or until `ended` is set; returns counts, seconds and this process's cost."""
    ended = ended or asyncio.Event()
    known, began = set(home.devices()), time.monotonic()
    for name in plan.names():
        if name not in known:
            home.enrol(name, labels={"simulated": "yes"})
    tally, trust = Tally(), Trust([home.signer.public_key])
    enrolled_s, before = time.monotonic() - began, _cpu_s()
    tasks = []
    try:
        for i, name in enumerate(plan.names()):
            folder = home.device_folder(name)
            config = MqttConfig(
                home.settings.host,
                home.settings.mqtt_port,
                home.ca,
                folder / "device.pem",
                folder / "device.key",
                timeout_s=60.0,
            )
            who = Identity(parse_device_id(name), home.settings.tenant, TOKENIZER, trust)
            device = SimulatedDevice(who, MqttBroker(config), behaviour, tally, plan.seed + i, plan.telemetry_s)
            tasks.append(asyncio.create_task(device.run()))
            await asyncio.sleep(1 / plan.connects_s)
            if ended.is_set():
                break
        started = time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(plan.seconds):
                await _first(asyncio.gather(*tasks), ended)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "devices": plan.devices,
        **asdict(tally),
        "enrol_s": round(enrolled_s, 2),
        "run_s": round(time.monotonic() - started, 2),
        "cpu_s": round(_cpu_s() - before, 2),
        "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


async def _first(work: asyncio.Future[Any], ended: asyncio.Event) -> None:
    """Whichever comes first; a fault of the work is raised."""
    end = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
    finally:
        end.cancel()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
