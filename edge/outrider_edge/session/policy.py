"""How far and how wide to draft, from the margins of the draft's guesses.

A burst is a chain with sibling leaves that is worth one verification. It starts at the frontier, or ahead of it at the
end of the burst in flight, and ends where a further node is unlikely to survive.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from outrider_shared.errors import ConfigError

# Margin in nats -> survival of the best guess; measured on the bundled pair over T = 0, 0.7 and 1.
PRIOR = ((0.0, 0.45), (0.25, 0.55), (0.5, 0.63), (1.0, 0.74), (2.0, 0.87), (3.0, 0.94), (5.0, 0.985), (8.0, 0.995))


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """Thresholds of drafting.

    Attributes:
        depth: Longest chain of a burst.
        width: Candidates per position; 1 is a plain chain.
        stop_survival: A burst ends when its tip is committed with less than this probability.
        sibling_survival: A sibling is sent if it is committed with at least this probability.
        bursts_ahead: Bursts drafted beyond the one in flight, while the network and the cloud are busy.
        coalesce_s: Nodes wait at most this long for the rest of their burst.
        survival: (margin, survival of the best guess), ascending.
    """

    depth: int = 8
    width: int = 2
    stop_survival: float = 0.3
    sibling_survival: float = 0.12
    bursts_ahead: int = 1
    coalesce_s: float = 0.004
    survival: tuple[tuple[float, float], ...] = PRIOR

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1 or self.bursts_ahead < 0:
            raise ConfigError(
                f"draft depth {self.depth}, width {self.width}, bursts ahead {self.bursts_ahead}",
                hint="depth and width must be at least 1, bursts ahead not negative",
            )

    def survival_of(self, margin: float) -> float:
        """Probability that the best of a guess with that margin is the target's choice; interpolated."""
        index = bisect.bisect_right(self.survival, (margin, 1.0))
        if index == 0:
            return self.survival[0][1]
        if index == len(self.survival):
            return self.survival[-1][1]
        (x0, y0), (x1, y1) = self.survival[index - 1], self.survival[index]
        return y0 + (y1 - y0) * (margin - x0) / (x1 - x0)
