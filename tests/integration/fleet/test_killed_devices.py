"""Devices killed at every step of their journal: real processes, a real broker, a real service with its roll-outs.

OUTRIDER_KILLS=all kills at every write of every file, before it is in place and after; without it, the write of each
step of the journal kills once. Nothing else is different.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.bench.service import new_home, serving
from outrider_cloud.fleet.registry import tables
from outrider_cloud.fleet.serve import open_registry
from outrider_edge.agent.disk import Disk
from outrider_edge.agent.update.selftest import make_golden
from outrider_edge.agent.update.slots import Slots
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.fleet.artifact import Golden
from outrider_shared.packs import bundled_pack
from support.daemon import ENVIRONMENT
from support.mosquitto import running
from support.served import until
from support.updates import variant

if TYPE_CHECKING:
    from pathlib import Path

# A `+` for each start since the switch: one after the kill at `switched`, two after that at `probation+`.
STEPS = ("assigned", "downloading", "verifying", "staged", "self_test", "switched", "probation+", "committed++")
BACK = ("assigned", "staged", "self_test", "switched", "probation+", "committed++")
LEFT = ("probation", "probation+", "probation+!", "rolled_back+")
ALL = os.environ.get("OUTRIDER_KILLS") == "all"
FILES, WHEN = ("*", "*") if ALL else ("journal", "after")
WITHIN_S = 240.0
GATES = {"acceptance": False, "latency": False, "min_pairs": 0, "min_executed": 1, "max_failed": 0.5}


def kills(rollout: str, *states: str) -> list[str]:
    more = [state.rstrip("+") + "+" * starts for state in states for starts in range(4)] if ALL else []
    return [f"{FILES} {rollout} {state} {WHEN}" for state in dict.fromkeys([*states, *more])]


class Device:
    """A device whose program is started again whenever it dies, as systemd does."""

    def __init__(self, home, name: str, folder: Path, wanted: list[str]) -> None:
        self.name, self.folder, self.wanted = name, home.enrol(name), wanted
        self._killed, self._log = folder / f"{name}.killed", folder / f"{name}.log"
        self._killed.touch()
        self._ended, self._thread = threading.Event(), threading.Thread(target=self._run)
        self.statuses: list[int] = []

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        command = [sys.executable, "-m", "support.dying", str(self.folder), str(self._killed), *self.wanted]
        while not self._ended.is_set():
            with self._log.open("ab") as log, subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log) as one:
                while one.poll() is None and not self._ended.wait(0.02):
                    pass
                one.terminate()
                self.statuses.append(one.wait())

    @property
    def killed(self) -> list[str]:
        return self._killed.read_text().splitlines()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def in_use(self) -> str:
        """Target of the pack that its pointer names; loaded, so it works."""
        slots = Slots(Disk(), self.folder / "state" / "slots", bundled_pack())
        DraftModel.load(slots.folder(slots.current()))
        return slots.reference(slots.current()).target


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    """Of each roll-out: a good draft, one that another golden prompt was signed for, one that will crash."""
    folder = tmp_path_factory.mktemp("packs")
    made = {name: variant(bundled_pack(), folder / name, name) for name in ("good", "unfit", "crashing")}
    golden = make_golden(made["good"])
    wrong = tuple(Golden(case.prompt, tuple(token ^ 1 for token in case.expected)) for case in golden)
    return {"good": (made["good"], golden), "unfit": (made["unfit"], wrong), "crashing": (made["crashing"], golden)}


def test_a_device_killed_at_every_step_of_its_journal_ends_on_a_working_draft(tmp_path, monkeypatch, packs):
    """One updates and is sent back, another fails its self-test, a third never gets through its probation."""
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    home = new_home(tmp_path / "fleet")
    targets = {name: publish(home.repository, pack, version="1", golden=golden, deltas=0)
               for name, (pack, golden) in packs.items()}  # fmt: skip
    good = Device(home, "good-1", tmp_path, kills("good", *STEPS) + kills("good/back", *BACK))
    unfit = Device(home, "unfit-1", tmp_path, kills("unfit", "failed"))
    crashing = Device(home, "crashing-1", tmp_path, kills("crashing", *LEFT))
    devices = (good, unfit, crashing)
    with running(home), serving(home) as service, contextlib.ExitStack() as alive:
        for device in devices:
            alive.enter_context(device)
        until(service, "/overview", lambda seen: seen["online"] == len(devices), WITHIN_S)
        service.send("PATCH", "/config", {"telemetry_s": 0.5, "probation_s": 0.0, "probation_boots": 50})
        service.send("PATCH", "/devices/crashing-1/config", {"probation_boots": 1})
        for name, target in targets.items():
            roll_out(service, name, target)
        ended = {name: until(service, f"/rollouts/{name}", _ended, WITHIN_S) for name in targets}
        assert {name: (row["state"], row["counts"]) for name, row in ended.items()} == {
            "good": ("succeeded", {"committed": 1}), "unfit": ("rolled_back", {"reverted": 1}),
            "crashing": ("rolled_back", {"reverted": 1}),
        }  # fmt: skip
        assert _reported(service, good) == targets["good"] == good.in_use()
        service.send("POST", "/rollouts/good/rollback", None)
        back = until(service, "/rollouts/good", lambda row: row["state"] == "rolled_back", WITHIN_S)
        assert back["counts"] == {"reverted": 1}
        for device in devices:
            assert _reported(service, device) == "bundled" == device.in_use(), device.log
        for name in targets:
            _happened_once(service, name)
        said = {name: _failures(service, name) for name in targets}
        assert said == {"good": [], "unfit": ["update.failed"], "crashing": ["update.rolled_back"]}
    for device in devices:
        assert device.statuses.count(-signal.SIGKILL) == len(device.killed), "it died of nothing else"
        assert set(device.statuses) == {-signal.SIGKILL, 0}
    if ALL:
        assert len(good.killed) >= 30
    else:
        assert [line for device in devices for line in device.killed] == [line for d in devices for line in d.wanted]
    _counted_once(home)


def roll_out(service, name: str, target: str) -> None:
    """To the one device of that name."""
    service.send("PUT", f"/groups/{name}", {"members": [f"{name}-1"]})
    body = {"name": name, "target": target, "group": name, "control_percent": 0, "gates": GATES, "attempts": 1}
    service.send("POST", "/rollouts", {**body, "stages": [{"percent": 100, "soak_s": 0}]})
    service.send("POST", f"/rollouts/{name}/submit", None)


def _happened_once(service, name: str) -> None:
    happened = [event["what"] for event in service.ask(f"/rollouts/{name}")["events"]]
    assert len(happened) == len(set(happened)), "each step of it happened once"
    members = service.ask(f"/rollouts/{name}/devices")["devices"]
    assert [member["attempt"] for member in members] == [1], "nobody was told twice"


def _failures(service, name: str) -> list[str]:
    """Ends with a code that the device told, as the audit log has them."""
    rows = service.ask(f"/audit?subject={name}&limit=1000")["audit"]
    return [row["action"] for row in rows if row["actor"] == f"{name}-1" and row["action"] != "update.switched"]


def _ended(row: dict) -> bool:
    return row["state"] not in {"scheduled", "running", "rolling_back"}


def _reported(service, device: Device) -> str:
    """What the device says it drafts with, once it has said so to the end."""
    done = lambda row: row["online"] and row["desired"]["version"] == row["applied_version"]  # noqa: E731 - one line
    return until(service, f"/devices/{device.name}", done, WITHIN_S)["active_target"]


def _counted_once(home) -> None:
    database = open_registry(home)
    with database.reading() as connection:
        recorded = connection.execute(select(func.sum(tables.minutes.c.windows))).scalar_one()
        each = connection.execute(select(tables.telemetry.c.device, tables.telemetry.c.at)).all()
    database.close()
    assert len(each) == len(set(each)) == recorded
