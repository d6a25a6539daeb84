"""Broker and controller killed in the middle of a roll-out: real processes, simulated devices with real connections."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from sqlalchemy import func, select

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.bench.service import new_home, serving
from outrider_cloud.fleet.registry import tables
from outrider_cloud.fleet.serve import open_registry
from support.daemon import ENVIRONMENT
from support.mosquitto import running
from support.served import until
from support.updates import tiny_pack

DEVICES = 8
GATES = {"acceptance": False, "latency": False, "min_pairs": 0}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
    made = new_home(tmp_path / "fleet")
    publish(made.repository, tiny_pack(tmp_path / "next", "next"), version="1", device_class="int8")
    return made


def test_a_roll_out_outlives_its_broker_and_its_controller(home, tmp_path):
    """SIGKILL to each while devices are being told; it ends as it would have, and nothing counts twice."""
    command = [sys.executable, "-m", "outrider_cloud.fleet.cli", "simulate", "--dir", str(home.folder), "--json"]
    flags = ["--devices", str(DEVICES), "--telemetry-s", "0.3", "--requests-s", "4"]
    log = tmp_path / "simulated.json"
    with (
        running(home) as broker,
        log.open("wb") as out,
        subprocess.Popen([*command, *flags], env=ENVIRONMENT, stdout=out) as devices,
    ):
        with serving(home) as service:
            until(service, "/overview", lambda seen: seen["online"] == DEVICES)
            stages = [{"percent": 50, "soak_s": 0}, {"percent": 100, "soak_s": 0}]
            wanted = {"name": "r", "target": "draft/int8/next-1.tar", "per_minute": 120, "growth": 1}
            service.send("POST", "/rollouts", {**wanted, "stages": stages, "control_percent": 0, "gates": GATES})
            service.send("POST", "/rollouts/r/submit", None)
            until(service, "/rollouts/r", lambda row: row["counts"].get("committed", 0) >= 1)
            broker.kill()
            broker.start()
            until(service, "/rollouts/r", lambda row: row["counts"].get("committed", 0) >= 3)
            os.kill(service.pid, signal.SIGKILL)
        with serving(home) as service:
            row = until(service, "/rollouts/r", lambda row: row["state"] not in {"running", "scheduled"})
            assert (row["state"], row["counts"]) == ("succeeded", {"committed": DEVICES})
            happened = [event["what"] for event in row["events"]]
            assert len(happened) == len(set(happened)), "each step of it happened once"
            devices.terminate()
            devices.wait(60)
            until(service, "/overview", lambda seen: seen["online"] == 0)
    database = open_registry(home)
    with database.reading() as connection:
        attempts = set(connection.execute(select(tables.members.c.attempt)).scalars())
        recorded = connection.execute(select(func.sum(tables.minutes.c.windows))).scalar_one()
        each = connection.execute(select(tables.telemetry.c.device, tables.telemetry.c.at)).all()
    database.close()
    assert attempts == {1}, "nobody was told twice"
    assert len(each) == len(set(each)) == recorded
    # A window whose acknowledgement the broker took with it may be recorded without having been promised.
    assert recorded <= json.loads(log.read_text())["telemetry"] + 2 * DEVICES
