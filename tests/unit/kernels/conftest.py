"""Fixtures of the kernels' tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

CACHE = Path(__file__).resolve().parents[3] / "build" / "kernels"


def launcher(races=None):
    from outrider_cloud.kernels.cuda.host import HostLauncher

    if shutil.which("g++") is None:
        pytest.skip("the host build of the kernels needs g++")
    return HostLauncher(CACHE, races)


@pytest.fixture(scope="session")
def host():
    """The kernels on the CPU, compiled once and kept beside the tree between runs."""
    seed = os.environ.get("OUTRIDER_KERNEL_RACES")  # see test_races
    return launcher(int(seed) if seed else None)


@pytest.fixture(scope="session")
def racing():
    """The same with threads interleaved, and watched."""
    return launcher(races=1)


@pytest.fixture(scope="session")
def cache(host):
    """Where what is compiled is kept."""
    return CACHE
