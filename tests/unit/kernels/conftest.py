"""Fixtures of the kernels' tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def host():
    """The kernels on the CPU, compiled once and kept beside the tree between runs."""
    from outrider_cloud.kernels.cuda.host import HostLauncher

    if shutil.which("g++") is None:
        pytest.skip("the host build of the kernels needs g++")
    return HostLauncher(ROOT / "build" / "kernels")
