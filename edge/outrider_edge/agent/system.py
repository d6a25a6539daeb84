"""What the machine says about itself, where it does (Linux's /sys and /proc; elsewhere nothing is known)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def temperature_c(root: Path = Path("/sys/class/thermal")) -> float | None:
    """The hottest thermal zone in degrees Celsius."""
    found = []
    for file in root.glob("thermal_zone*/temp"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(file.read_text()) / 1000)
    return max(found, default=None)


def resident_bytes(file: Path = Path("/proc/self/statm")) -> int | None:
    """Memory of this process."""
    try:
        return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def memory_bytes() -> int:
    """Memory of the machine; 0 where it is unknown."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError):
        return 0
