"""How far and how wide to draft, from the margins of the draft's guesses.

The tree grows best-first: the next pass goes to the open leaf that is likeliest on the committed path. A burst is what
is worth one verification. It ends where a further pass costs more than it brings; drafting may go on beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass

from outrider_shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """Thresholds of drafting. A node's reach is the probability that it is on the committed path.

    Attributes:
        depth: Most passes of a burst.
        width: Candidates per position; 1 is a plain chain.
        stop_survival: A burst ends when no open leaf has this reach.
        sibling_survival: A candidate that is not the best goes along if it has this reach.
        ahead_survival: Drafting beyond a burst ends when no open leaf has this reach.
        bursts_ahead: Bursts drafted beyond the one in flight, while the network and the cloud are busy.
        coalesce_s: Nodes wait at most this long for the rest of their burst.
        per_message: Most nodes of a message.
        timed: Nodes leave when the way up is free, and just in time for the cloud's next step where its steps can be
            foreseen (`departure`).
        adaptive: All but width and timing follow link, drafter and cloud from there (`control`, `worth`); False keeps
            them.
    """

    depth: int = 8
    width: int = 2
    stop_survival: float = 0.1
    sibling_survival: float = 0.05
    ahead_survival: float = 0.02
    bursts_ahead: int = 2
    coalesce_s: float = 0.004
    per_message: int = 64
    timed: bool = True
    adaptive: bool = True

    def __post_init__(self) -> None:
        if self.depth < 1 or self.width < 1 or self.bursts_ahead < 0 or self.per_message < 1:
            raise ConfigError(
                f"draft depth {self.depth}, width {self.width}, bursts ahead {self.bursts_ahead}, "
                f"{self.per_message} nodes per message",
                hint="depth, width and nodes per message must be at least 1, bursts ahead not negative",
            )
