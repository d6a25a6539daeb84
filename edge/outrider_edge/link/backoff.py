"""How long to wait between tries to reach the cloud."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from outrider_shared.errors import ConfigError

# Beyond this many failures the bound is reached anyway, and a power of two would overflow.
_MOST_DOUBLINGS = 32


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential with full jitter (Brooker, "Exponential Backoff And Jitter", AWS 2015).

    Attributes:
        first_s: Upper bound of the first wait.
        most_s: Upper bound of any wait.
    """

    first_s: float = 0.05
    most_s: float = 2.0
    _random: random.Random = field(default_factory=random.Random, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.first_s <= self.most_s:
            raise ConfigError(f"backoff from {self.first_s} to {self.most_s} s", hint="0 < first_s <= most_s")

    def wait_s(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row (1 for the first)."""
        bound = min(self.most_s, self.first_s * 2.0 ** min(failures - 1, _MOST_DOUBLINGS))
        return self._random.uniform(0.0, bound)
