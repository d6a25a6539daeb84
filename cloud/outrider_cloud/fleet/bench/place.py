"""What a measurement of the plane was made on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import resource
import sqlite3
import time
from pathlib import Path
from typing import Any


def place() -> dict[str, Any]:
    """Processor, how busy it was, versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }


def cpu_s(who: int = resource.RUSAGE_SELF) -> float:
    """Processor seconds of this process so far."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Of latencies, in milliseconds."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {"p50_ms": at(0.5), "p95_ms": at(0.95), "max_ms": round(1000 * ordered[-1], 2)}


class Stopwatch:
    """Seconds of the clock and of the processor since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_s()

    @property
    def wall_s(self) -> float:
        """Of the clock."""
        return time.perf_counter() - self._wall

    @property
    def cpu_s(self) -> float:
        """Of this process."""
        return cpu_s() - self._cpu
