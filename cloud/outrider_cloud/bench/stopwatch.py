"""Times of work on a device: warmed up, repeated, told as median and spread; and how fast memory is copied there."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Larger than the second-level cache of any card (50 MB on an H100, 60 MB on an H200).
_FLUSH_BYTES = 256 << 20
_COPY_BYTES = {"cuda": 2 << 30, "cpu": 128 << 20}


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of repeated work.

    Attributes:
        median, low, high: Of the repetitions.
        runs: Repetitions.
    """

    median: float
    low: float
    high: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """The spread of measured seconds."""
        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def as_us(self) -> dict[str, float]:
        """As a JSON object, in microseconds."""
        return {"median_us": self.median * 1e6, "low_us": self.low * 1e6, "high_us": self.high * 1e6, "runs": self.runs}


class Stopwatch:
    """Measures on one device.

    Args:
        device: Where the work runs.
        warmup: Runs before those that count.
        repeats: Runs that count.
    """

    def __init__(self, device: torch.device, warmup: int, repeats: int) -> None:
        self.device, self.warmup, self.repeats = device, warmup, repeats
        self._cold = torch.empty(_FLUSH_BYTES if device.type == "cuda" else 0, dtype=torch.uint8, device=device)

    def on_device(self, work: Callable[[], Any]) -> Spread:
        """Time on the device, with cold caches: on a card between events, so that launches do not count.

        The flush before each run takes longer than the host needs to launch the work behind it.
        """
        for _ in range(self.warmup):
            work()
        if self.device.type != "cuda":
            return self.wall(work, warmed=True)
        marks = [(self._event(), self._event()) for _ in range(self.repeats)]
        torch.cuda.synchronize(self.device)
        for start, end in marks:
            self._cold.zero_()
            start.record()
            work()
            end.record()
        torch.cuda.synchronize(self.device)
        return Spread.of([float(start.elapsed_time(end)) / 1e3 for start, end in marks])

    def wall(self, work: Callable[[], Any], *, warmed: bool = False) -> Spread:
        """Time as the host sees it, from an idle device to an idle device."""
        for _ in range(0 if warmed else self.warmup):
            work()
        seconds = []
        for _ in range(self.repeats):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            seconds.append(time.perf_counter() - started)
        return Spread.of(seconds)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def copy_bytes_per_s(self) -> float:
        """Bandwidth of a large copy within the device's memory, bytes read and written."""
        size = _COPY_BYTES[self.device.type]
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.on_device(lambda: target.copy_(source)).median

    @staticmethod
    def _event() -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
