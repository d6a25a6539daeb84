"""Measurements that start processes of their own, ended by SIGTERM in the middle: no process and no file stays."""

from __future__ import annotations

import pytest

from outrider_cloud.fleet import broker
from outrider_shared.errors import ConfigError
from support.ended import ended_in_the_middle

BENCH = "outrider_cloud.fleet.bench.cli"
RUNS = {
    "load": (BENCH, "load", "--devices", "3", "--seconds", "600"),
    "update": (BENCH, "update"),
    "demo": ("outrider_cloud.fleet.cli", "demo", "--page-port", "0"),
}


@pytest.mark.parametrize("name", RUNS)
def test_ended_in_the_middle_it_leaves_nothing_behind(tmp_path, name):
    """As soon as the broker and the service run, which are two of its processes."""
    try:
        broker.find_mosquitto()
    except ConfigError as error:
        pytest.skip(str(error))
    ended_in_the_middle(tmp_path, RUNS[name], 3)
