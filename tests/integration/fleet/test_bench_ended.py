"""Measurements that start processes of their own, ended by SIGTERM in the middle: no process and no file stays."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from outrider_cloud.fleet import broker
from outrider_shared.errors import ConfigError
from support.daemon import ENVIRONMENT

BENCH = "outrider_cloud.fleet.bench.cli"
RUNS = {
    "load": (BENCH, "load", "--devices", "3", "--seconds", "600"),
    "update": (BENCH, "update"),
    "demo": ("outrider_cloud.fleet.cli", "demo", "--page-port", "0"),
}


def below(folder) -> list[str]:
    """Living processes that work below a folder."""
    told = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return [line for line in told.splitlines() if str(folder) in line]


@pytest.mark.parametrize("name", RUNS)
def test_ended_in_the_middle_it_leaves_nothing_behind(tmp_path, name):
    """As soon as the broker and the service run, which are two of its processes."""
    try:
        broker.find_mosquitto()
    except ConfigError as error:
        pytest.skip(str(error))
    environment = {**ENVIRONMENT, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", *RUNS[name]], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + 120
            while len(below(tmp_path)) < 2:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            process.terminate()
            assert process.wait(60) != 0
        finally:
            process.kill()
    assert below(tmp_path) == []
    assert list(tmp_path.glob("outrider-*")) == []
