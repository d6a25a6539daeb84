"""Draft parameters that follow the link: what a device does while a round trip and a step pass is free, no more is.

While `(rtt_s + step_s) / pass_s` passes fit between a draft and the word on it, nodes drafted meanwhile cost nothing
but bytes: there it pays to go deep, and to let nodes wait for company in one message. Beside a quick cloud each pass
delays the verification of those before it: there bursts are short and leave early. A cloud that holds for drafts lets
no step pass meanwhile.

All are measured all the time: the round trip by pings that the cloud's event loop answers (twice a second and more),
the step by commits that follow each other, the pass by what the drafter took. A narrow link shows in the pings, as
its queue. Numbers behind the bounds: docs/decisions/0013.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outrider_edge.session.estimates import Estimates

if TYPE_CHECKING:
    from outrider_edge.session.policy import DraftPolicy

# New figures against old ones: two pings, or a few passes, move an estimate most of the way.
_RTT_WEIGHT, _PASS_WEIGHT = 0.8, 0.2
# Where passes are free, bursts are this much deeper.
_DEEPER = 2.0
# Where they are not: a burst takes no longer than this, and is no shorter than so many nodes.
_BURST_S, _LEAST = 0.03, 2.0
# Part of a round trip that nodes wait for company, and the most.
_COALESCE_SHARE, _COALESCE_MOST_S = 0.2, 0.012


class Control:
    """Steers one session's policy.

    Args:
        policy: For a cloud next door, and whether it may be changed at all (`adaptive`).
        known: Of the cloud at hand; measurements are written to it.
        held: Whether the cloud waits for drafts (`Pace.HOLD`).

    Attributes:
        known: As given; another one where the session moves to another cloud.
    """

    def __init__(self, policy: DraftPolicy, known: Estimates | None = None, *, held: bool = False) -> None:
        self._base, self._held = policy, held
        self.known = known or Estimates()
        self._passes = 0

    def note_ping(self, rtt_s: float) -> None:
        """A ping came back after that long."""
        known = self.known
        if known.rtt_s is None:
            known.rtt_s = rtt_s
            return
        known.jitter_s += _RTT_WEIGHT * (abs(rtt_s - known.rtt_s) - known.jitter_s)
        known.rtt_s += _RTT_WEIGHT * (rtt_s - known.rtt_s)

    def note_pass(self, taken_s: float) -> None:
        """A draft pass took that long. The first of a session reads the prompt, which says nothing of the others."""
        self._passes += 1
        if self._passes > 1:
            known = self.known
            known.pass_s = taken_s if known.pass_s is None else known.pass_s + _PASS_WEIGHT * (taken_s - known.pass_s)

    def policy(self) -> DraftPolicy:
        """The policy for the link and the drafter as they are now."""
        base, known = self._base, self.known
        if not base.adaptive or known.rtt_s is None or known.pass_s is None:
            return base
        pass_s = max(known.pass_s, 1e-6)
        near = min(base.depth, max(_LEAST, _BURST_S / pass_s))
        free_s = known.rtt_s + (0.0 if self._held else known.step_s or 0.0)
        depth = min(_DEEPER * base.depth, max(near, free_s / pass_s))
        coalesce_s = max(base.coalesce_s, min(_COALESCE_MOST_S, _COALESCE_SHARE * known.rtt_s))
        return replace(base, depth=round(depth), coalesce_s=coalesce_s)
