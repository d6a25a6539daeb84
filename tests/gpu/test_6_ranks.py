"""Two cards, one model: over NCCL, shards have the bits that one rank with as many shards has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("two_ranks.py")


def test_two_ranks_have_the_bits_of_one(place):
    """In exact mode: logits of a step, from two processes on two cards (on the host build: over gloo)."""
    if place.on_card and torch.cuda.device_count() < 2:
        pytest.skip("one card; this needs two")
    ours = {
        "OUTRIDER_RANKS_ON": place.device.type,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, **ours},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 0: the same bits" in done.stdout
    assert "rank 1: the same bits" in done.stdout
