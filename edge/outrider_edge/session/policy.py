"""How far and how wide to draft, from the margins of the draft's guesses.

A burst is a chain with sibling leaves that is worth one verification. It starts at the frontier, or ahead of it at the
end of the burst in flight, and ends where a further node is unlikely to survive.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider_shared.errors import ConfigError


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
        timed: Nodes leave just in time for the cloud's next step, where its steps can be foreseen (`departure`).
        adaptive: The above are for a cloud next door and follow the link from there (`control`); False keeps them.
    """

    depth: int = 8
    width: int = 2
    stop_survival: float = 0.1
    sibling_survival: float = 0.12
    bursts_ahead: int = 2
    coalesce_s: float = 0.004
    timed: bool = True
    adaptive: bool = True

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1 or self.bursts_ahead < 0:
            raise ConfigError(
                f"draft depth {self.depth}, width {self.width}, bursts ahead {self.bursts_ahead}",
                hint="depth and width must be at least 1, bursts ahead not negative",
            )
