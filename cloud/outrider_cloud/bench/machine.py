"""What a measurement was made on: without it a figure says nothing."""

from __future__ import annotations

import datetime as dt
import importlib
import os
import platform
import resource
from pathlib import Path
from typing import Any

import torch
import transformers


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, threads and versions, and of a card its name and what drives it."""
    card = _card(device) if device is not None and device.type == "cuda" else {}
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **card,
    }


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _card(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    driver = Path("/proc/driver/nvidia/version")
    return {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "gpu_processors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "driver": driver.read_text().splitlines()[0] if driver.exists() else "unknown",
        **{name: _version(name) for name in ("cupy", "triton", "flashinfer")},
    }


def _version(module: str) -> str:
    try:
        return str(importlib.import_module(module).__version__)
    except (ImportError, AttributeError):
        return "none"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
