"""Many devices on a real broker and the real service: what is promised arrives, and desired state comes back in time.

Three processes of their own: Mosquitto, `outrider fleet serve` with its registry, `outrider fleet simulate` (one MQTT
connection with its own certificate for each device). What the devices had acknowledged (QoS 1) is compared with what
stands in the registry afterwards, message by message: a loss or a message counted twice shows.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from outrider_cloud.fleet.bench.place import Stopwatch, quantiles
from outrider_cloud.fleet.bench.service import new_home, process_cpu_s, running
from outrider_cloud.fleet.registry import tables
from outrider_cloud.fleet.serve import open_registry
from outrider_cloud.fleet.simulate.run import Plan
from outrider_shared.errors import DeadlineError

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.fleet.bench.service import Service
    from outrider_cloud.fleet.registry.database import Database

_PATIENCE_S = 300.0
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """How much.

    Attributes:
        devices: Connected at once.
        seconds: Of the load.
        telemetry_s: Each device sends one message in that time.
        turns: Changes of desired state of all devices, one after the other, under that load.
    """

    devices: int = 1000
    seconds: float = 60.0
    telemetry_s: float = 1.0
    turns: int = 3


def bench_load(plan: LoadPlan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Connect, let them speak, change what all are to be, count.

    Raises:
        ConfigError: if Mosquitto is not installed.
        DeadlineError: if the devices do not get connected, or do not report, for minutes.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as temporary:
        home = new_home(Path(temporary) / "fleet")
        tell(f"enrolling {plan.devices} devices")
        watch = Stopwatch()
        for name in Plan(plan.devices).names():
            home.enrol(name)
        enrolled_s = watch.wall_s
        with running(home) as service:
            database = open_registry(home)
            try:
                measured = _under_load(service, database, plan, tell)
            finally:
                database.close()
    return {
        "bench": "fleet load", "units": {"*_s": "seconds", "*_ms": "milliseconds", "*_us": "microseconds"},
        "devices": plan.devices, "messages_per_s_wanted": plan.devices / plan.telemetry_s,
        "enrol_ms_each": round(1000 * enrolled_s / plan.devices, 1), **measured,
    }  # fmt: skip


def _under_load(service: Service, database: Database, plan: LoadPlan, tell: Callable[[str], None]) -> dict[str, Any]:
    tell("connecting")
    watch = Stopwatch()
    log = service.home.folder / "simulate.json"
    arguments = ["--dir", str(service.home.folder), "--devices", str(plan.devices), "--connects-s", "200"]
    with log.open("wb") as stream:
        simulating = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "outrider_cloud.fleet.cli", "simulate", *arguments, "--json",
             "--telemetry-s", str(plan.telemetry_s)], stdout=stream
        )  # fmt: skip
    try:
        _until(lambda: _online(database) >= plan.devices, "not all devices came online")
        connected_s = watch.wall_s
        time.sleep(2 * plan.telemetry_s)
        tell(f"listening for {plan.seconds:g} s")
        load = _listen(service, database, plan, simulating.pid)
        turns = []
        for turn in range(plan.turns):
            tell(f"changing what all are to be, {turn + 1} of {plan.turns}")
            turns.append(_turn(service, database, plan, turn))
            time.sleep(1.0)
        simulating.terminate()
        simulating.wait(120)
    finally:
        simulating.kill()
        simulating.wait()
    return {"connected_s": round(connected_s, 2), **load, **_turns(turns), **_settled(database, log)}


def _listen(service: Service, database: Database, plan: LoadPlan, simulator: int) -> dict[str, Any]:
    before, cpu, other, watch = _windows(database), service.cpu_s(), process_cpu_s(simulator), Stopwatch()
    time.sleep(plan.seconds)
    count, wall_s = _windows(database) - before, watch.wall_s
    used, spent = service.cpu_s() - cpu, process_cpu_s(simulator) - other
    return {
        "seconds": round(wall_s, 2), "messages": count, "messages_per_s": round(count / wall_s, 1),
        "service_cpu_us_each": round(1e6 * used / count), "service_messages_per_core_s": round(count / used),
        "service_cores_busy": round(used / wall_s, 2), "simulator_cores_busy": round(spent / wall_s, 2),
    }  # fmt: skip


def _turn(service: Service, database: Database, plan: LoadPlan, turn: int) -> tuple[float, float]:
    """Seconds until the request was answered, and until every device's report of it was in the registry."""
    began = time.perf_counter()
    service.send("PATCH", "/config", {"log_lines": 100 + turn})
    asked = time.perf_counter()
    columns = tables.devices.c
    done = select(func.count()).where(columns.applied_version == turn + 1)
    _until(lambda: _count(database, done) >= plan.devices, "not all devices reported their new state")
    return asked - began, time.perf_counter() - began


def _turns(turns: list[tuple[float, float]]) -> dict[str, Any]:
    if not turns:
        return {}
    back = sorted(back for _, back in turns)
    return {
        "desired_asked": quantiles([asked for asked, _ in turns]),
        "desired_to_all_and_reported_s": [round(back, 2) for _, back in turns],
        "desired_to_all_and_reported_worst_s": round(back[-1], 2),
    }


def _settled(database: Database, log: Path) -> dict[str, Any]:
    """What was promised and what is there; waits for what the broker still holds."""
    acknowledged = json.loads(log.read_text("utf-8"))["telemetry"]
    end = time.monotonic() + 30
    while time.monotonic() < end and (_windows(database) < acknowledged or _online(database)):
        time.sleep(0.1)
    recorded = _windows(database)
    lost = _count(database, select(func.sum(tables.devices.c.lost)))
    # A device that is ended may have a message under way whose acknowledgement it does not see any more.
    return {"acknowledged": acknowledged, "recorded": recorded, "gaps_in_numbers": lost,
            "promised_and_lost": max(0, acknowledged - recorded)}  # fmt: skip


def _windows(database: Database) -> int:
    return _count(database, select(func.sum(tables.minutes.c.windows)))


def _online(database: Database) -> int:
    return _count(database, select(func.count()).where(tables.devices.c.online))


def _count(database: Database, chosen: Any) -> int:
    with database.reading() as connection:
        return int(connection.execute(chosen).scalar_one() or 0)


def _until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not done():
        if time.monotonic() > end:
            raise DeadlineError(f"{what} within {_PATIENCE_S:g} s", hint="try fewer devices, or a quieter machine")
        time.sleep(_LOOK_S)
