"""Steps of a cloud's engine, as its page for Prometheus tells them."""

from __future__ import annotations

import urllib.request
from dataclasses import dataclass
from typing import Any, Self

_NAMES = {
    "outrider_cloud_steps_total": "count",
    "outrider_cloud_rows_total": "rows",
    "outrider_cloud_step_seconds_total": "seconds",
}
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Steps:
    """So many of them.

    Attributes:
        count: Steps.
        rows: In all, padding aside.
        seconds: In all.
    """

    count: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0

    @classmethod
    def read(cls, page: str) -> Self:
        """Those since the service began; what the page does not tell is none."""
        pairs = (line.split() for line in page.splitlines() if not line.startswith("#"))
        return cls(**{_NAMES[pair[0]]: float(pair[1]) for pair in pairs if len(pair) == 2 and pair[0] in _NAMES})

    def __add__(self, other: Steps) -> Steps:
        return Steps(self.count + other.count, self.rows + other.rows, self.seconds + other.seconds)

    def __sub__(self, other: Steps) -> Steps:
        return Steps(self.count - other.count, self.rows - other.rows, self.seconds - other.seconds)

    def figures(self, tokens: int) -> dict[str, Any]:
        """How many a token took, and what one was like; None where there was none."""
        return {
            "engine_steps_per_token": self.count / tokens,
            "engine_step_ms": 1e3 * self.seconds / self.count if self.count else None,
            "engine_rows_per_step": self.rows / self.count if self.count else None,
        }


def steps_of(metrics: str) -> Steps:
    """Ask a service; HOST:PORT is where its metrics are."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=_TIMEOUT_S) as page:
        return Steps.read(page.read().decode())
