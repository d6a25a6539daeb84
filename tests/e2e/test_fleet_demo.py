"""The fleet's demo, smaller: real processes from enrolment to a bad draft that is stopped, and nothing left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from outrider_cloud.fleet import broker
from outrider_shared.errors import ConfigError
from support.daemon import ENVIRONMENT

COMMAND = [sys.executable, "-m", "outrider_cloud.fleet.cli", "demo", "--page-port", "0"]


@pytest.fixture(autouse=True)
def _mosquitto():
    try:
        broker.find_mosquitto()
    except ConfigError as error:
        pytest.skip(str(error))
    pytest.importorskip("onnx")


def _ours(folder) -> list[str]:
    """Command lines of living processes that work below a folder."""
    told = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in told.splitlines() if str(folder) in line]


def test_a_good_draft_goes_out_and_a_bad_one_is_stopped_while_a_device_answers(tmp_path):
    """The story's own checks pass, and it is said what was found."""
    flags = ["--devices", "14", "--telemetry-s", "0.5", "--json"]
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    ran = subprocess.run([*COMMAND, *flags], check=False, env=environment, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["passed"]
    assert len(told["checks"]) >= 10
    assert told["bad_loss"] > 0.1
    assert told["bad_devices"] == 3
    assert _ours(tmp_path) == []
    assert list(tmp_path.glob("outrider-*")) == []


def test_ended_in_the_middle_it_leaves_nothing_behind(tmp_path):
    """SIGINT while the fleet comes up: no process, no file."""
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for line in process.stdout:
        if "watch it" in line:
            break
    time.sleep(1)
    assert _ours(tmp_path)
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    assert _ours(tmp_path) == []
    assert list(tmp_path.glob("outrider-*")) == []
