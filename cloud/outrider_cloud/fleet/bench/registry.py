"""A registry of many devices behind the real service: how fast it takes messages, and how fast the page is answered.

The registry is filled through `devices.take`, the one way in that the controller has, and a roll-out to every device
runs while the page is asked. Latencies are those of a client of the API on the same machine, connection kept.
"""

from __future__ import annotations

import random
import re
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from outrider_cloud.fleet.bench.place import Stopwatch, quantiles
from outrider_cloud.fleet.bench.service import new_home, running
from outrider_cloud.fleet.plane import Arrived
from outrider_cloud.fleet.registry import devices, rollouts, tables
from outrider_cloud.fleet.rollout.spec import Gates, Spec, Stage
from outrider_cloud.fleet.serve import open_registry
from outrider_cloud.fleet.simulate.behaviour import Behaviour, Draft
from outrider_shared.fleet.messages import Info, PackRef, Presence, Reported, Telemetry
from outrider_shared.ids import DeviceId

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.fleet.bench.service import Service
    from outrider_cloud.fleet.registry.database import Database

_BATCH = 500  # messages of a transaction, as the plane gathers them
_VERSIONS = 4
_NEXT = PackRef("draft/int8/next-9.tar", "f" * 64, "next")
ROLLOUT = "bench"


@dataclass(frozen=True, slots=True)
class RegistryPlan:
    """How much.

    Attributes:
        devices: In the registry.
        windows: Of telemetry of each device.
        repeats: How often each address is asked.
        seed: Of chance.
    """

    devices: int = 100_000
    windows: int = 3
    repeats: int = 40
    seed: int = 0


def fill(database: Database, plan: RegistryPlan) -> list[dict[str, Any]]:
    """Births, and then windows; returns messages per second of the clock and of one core."""
    rng = random.Random(plan.seed)  # noqa: S311 - a model, not a secret
    packs = [PackRef(f"draft/int8/draft-{i}.tar", f"{i}" * 64, f"draft-{i}") for i in range(_VERSIONS)]
    behaviour = Behaviour({f"draft-{i}": Draft(0.6 + 0.05 * i) for i in range(_VERSIONS)})
    samples = {pack: [behaviour.window(pack.target, 30.0, rng) for _ in range(50)] for pack in packs}
    names = [DeviceId(f"dev-{i:06d}") for i in range(plan.devices)]
    mine = {name: packs[rng.randrange(_VERSIONS)] for name in names}

    def births(name: DeviceId) -> list[Arrived]:
        info = Info(1, 1.0, "0.1.0", "Linux-6.1-aarch64", "int8", "0" * 64, mine[name], 4, 8 << 30, {"site": name[-1]})
        reported = Reported(1, 0, 1.0, 1, 1, mine[name], {"telemetry_s": 30.0, "log_lines": 200})
        return [Arrived(name, Presence(rng.random() < 0.9, 1, 1.0)), Arrived(name, info), Arrived(name, reported)]

    def window(seq: int) -> Callable[[DeviceId], list[Arrived]]:
        def of(name: DeviceId) -> list[Arrived]:
            fields = rng.choice(samples[mine[name]])
            return [Arrived(name, Telemetry(1, seq, 1.0, 30.0, mine[name], **fields))]

        return of

    first = _taken(database, "presence, info and reported", names, births)
    return [first, *(_taken(database, f"telemetry, window {i + 1}", names, window(i)) for i in range(plan.windows))]


def _taken(
    database: Database, what: str, names: list[DeviceId], make: Callable[[DeviceId], list[Arrived]]
) -> dict[str, Any]:
    watch, count, batch = Stopwatch(), 0, list[Arrived]()
    for name in [*names, None]:
        if name is not None:
            batch += make(name)
        if batch and (name is None or len(batch) >= _BATCH):
            with database.transaction() as connection:
                count += len(devices.take(connection, batch))
            batch = []
    return {
        "messages": what, "count": count, "per_s": round(count / watch.wall_s),
        "per_core_s": round(count / watch.cpu_s), "cpu_us_each": round(1e6 * watch.cpu_s / count, 1),
    }  # fmt: skip


def start_rollout(database: Database) -> None:
    """A slow one to every device, so that the controller has something to decide all the time."""
    spec = Spec(
        ROLLOUT, _NEXT.target, _NEXT.sha256, "int8", stages=(Stage(5), Stage(100)), per_minute=600.0,
        gates=Gates(min_baseline=1),
    )  # fmt: skip
    with database.transaction() as connection:
        rollouts.submit(connection, rollouts.create(connection, spec, "bench"), "bench")


def addresses(service: Service, plan: RegistryPlan) -> dict[str, tuple[str, ...]]:
    """What the page asks for in each of its views; what stands in one tuple is asked at once."""
    page = service.get("/").data.decode("utf-8")
    assets = tuple("/" + name.lstrip("/") for name in re.findall(r'(?:src|href)="([^":#]+\.(?:js|css))"', page))
    last = f"dev-{plan.devices - 1:06d}"
    return {
        "the page itself": ("/", *assets),
        "glance": ("/api/overview", "/api/rollouts", "/api/audit?limit=12"),
        "devices, first page": ("/api/devices?limit=50", "/api/overview"),
        "devices, last page": (f"/api/devices?limit=50&offset={max(0, plan.devices - 50)}",),
        "devices, by part of a name": (f"/api/devices?limit=50&search={last[-4:]}",),
        "devices, offline": ("/api/devices?limit=50&online=false",),
        "devices, of one version": ("/api/devices?limit=50&version=draft/int8/draft-1.tar",),
        "one device": (f"/api/devices/{last}", f"/api/devices/{last}/telemetry?limit=200"),
        "roll-outs": ("/api/rollouts",),
        "one roll-out": (f"/api/rollouts/{ROLLOUT}", f"/api/rollouts/{ROLLOUT}/devices?limit=100"),
        "audit log": ("/api/audit?limit=100",),
        "metrics": ("/metrics",),
    }


def ask(service: Service, plan: RegistryPlan) -> list[dict[str, Any]]:
    """Latency of each view: until the last of its answers is there."""
    rows = []
    with ThreadPoolExecutor(8) as pool:
        for view, paths in addresses(service, plan).items():
            took = []
            for _ in range(plan.repeats):
                began = time.perf_counter()
                answers = list(pool.map(service.get, paths))
                took.append(time.perf_counter() - began)
                time.sleep(0.05)
            bytes_each = sum(len(answer.data) for answer in answers)
            rows.append({"view": view, "requests": len(paths), "bytes": bytes_each, **quantiles(took)})
    return rows


def bench_registry(plan: RegistryPlan, tell: Callable[[str], None]) -> dict[str, Any]:
    """Fill a registry, serve it, ask for every view of the page.

    Raises:
        ConfigError: if Mosquitto is not installed.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as temporary:
        home = new_home(Path(temporary) / "fleet")
        database = open_registry(home)
        tell(f"filling a registry with {plan.devices} devices")
        ingest = fill(database, plan)
        start_rollout(database)
        database.close()
        size = (home.folder / "fleet.db").stat().st_size
        tell("starting the service, and a roll-out to all of them")
        with running(home) as service:
            begun(service)
            tell("asking for every view of the page")
            before, watch = service.cpu_s(), Stopwatch()
            views = ask(service, plan)
            busy = (service.cpu_s() - before) / watch.wall_s
        told = _told(home)
    return {
        "bench": "fleet registry", "units": {"per_s": "messages per second", "*_ms": "milliseconds"},
        "devices": plan.devices, "windows": plan.windows, "repeats": plan.repeats, "registry_bytes": size,
        "devices_told_meanwhile": told, "service_cores_busy": round(busy, 2),
        "slowest_view_p95_ms": max(row["p95_ms"] for row in views), "ingest": ingest, "views": views,
    }  # fmt: skip


def begun(service: Service) -> None:
    """Waits until the roll-out runs."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        if service.ask(f"/rollouts/{ROLLOUT}")["state"] == "running":
            return
        time.sleep(0.2)


def _told(home: Any) -> int:
    database = open_registry(home)
    try:
        with database.transaction() as connection:
            mine = select(tables.members.c.device).where(tables.members.c.told > 0)
            return len(connection.execute(mine).all())
    finally:
        database.close()
