"""Where the tests of the GPU run: on a card, else nowhere; with OUTRIDER_GPU_TESTS=host on the host build, in small.

Nothing here needs more than torch, transformers, CuPy and pytest (and what the engine needs, where a test says so), so
that they run on a bare machine: `python tests/gpu/run.py`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from outrider_cloud.engine.cuda_graphs import Graphs, eagerly
from outrider_cloud.kernels.cuda.gpu import GpuLauncher
from outrider_cloud.kernels.cuda.host import HostLauncher
from outrider_shared.errors import ConfigError

ON_HOST = os.environ.get("OUTRIDER_GPU_TESTS") == "host"


@dataclass(frozen=True)
class Place:
    """What runs kernels, how steps are captured, and which models fit."""

    launcher: Any
    device: torch.device
    capture: Any
    models: tuple[str, ...]
    layers: int
    buckets: tuple[int, ...]
    on_card: bool


def captured(compute: Any) -> Any:
    """In a pool of its own, so that no test depends on another."""
    return Graphs()(compute)


@pytest.fixture(scope="session")
def place() -> Place:
    """The card, or the reason why there is none."""
    if ON_HOST:
        launcher = HostLauncher(Path(__file__).resolve().parents[2] / "build" / "kernels")
        return Place(launcher, launcher.device, eagerly, ("tiny-llama", "tiny-qwen3"), 2, (8, 16), on_card=False)
    try:
        launcher = GpuLauncher(torch.device("cuda", 0))
    except ConfigError as error:
        pytest.skip(f"no card: {error}")
    torch.cuda.set_device(launcher.device)
    return Place(
        launcher,
        launcher.device,
        captured,
        ("llama-3.1-8b", "qwen3-8b"),
        4,
        (32, 64, 128),
        on_card=True,
    )


@pytest.fixture(scope="session")
def card(place) -> Place:
    """A real one."""
    if not place.on_card:
        pytest.skip("the host build is no card")
    return place


@pytest.fixture(scope="session")
def findings():
    """What tests found out beyond right and wrong; written to the file that OUTRIDER_FINDINGS names."""
    found: dict[str, Any] = {}
    yield found
    if (path := os.environ.get("OUTRIDER_FINDINGS")) and found:
        before = json.loads(Path(path).read_text()) if Path(path).exists() else {}
        Path(path).write_text(json.dumps({**before, **found}, indent=1) + "\n")
