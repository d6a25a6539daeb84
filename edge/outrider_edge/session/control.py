"""Draft parameters that follow the link: what a device does while a round trip and a step pass is free, no more is.

The thresholds of the policy are the floors of `worth`, from what is measured all the time: the round trip by pings that
the cloud's event loop answers (twice a second and more), the rate of the way up by the ping that goes right behind the
opening of a stream, the step and the pace by commits that follow each other, the pass by what the drafter took. The
queue of a narrow link shows in the pings, the queue of the cloud in the time of its steps and in its hint.

A cloud that is too far away to wait for drafts is never waited for either: there is one burst without an end, and what
is worth it leaves in time for each step (`departure`). A cloud next door, and one that holds, may wait for a burst: it
ends where a further pass costs more than it brings, or with what fits into a step, and drafting goes on beyond it.

Numbers behind it: docs/decisions/0013 and 0029.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outrider_edge.session.departure import AWAITED_SHARE
from outrider_edge.session.estimates import Estimates
from outrider_edge.session.worth import floors

if TYPE_CHECKING:
    from outrider_edge.session.policy import DraftPolicy

# New figures against old ones: two pings, or a few passes, move an estimate most of the way.
_RTT_WEIGHT, _PASS_WEIGHT = 0.8, 0.2
# Part of a round trip that nodes wait for company, and the most.
_COALESCE_SHARE, _COALESCE_MOST_S = 0.2, 0.012
# A burst for a cloud that may wait: no more passes than fit into a round trip and a step, within these bounds, lest its
# first nodes wait for the last ones. Without one: the floors alone end it.
_DEEPER, _ENDLESS = 2, 1_000_000


class Control:
    """Steers one session's policy.

    Args:
        policy: Before anything is known, and whether it may be changed at all (`adaptive`).
        known: Of the cloud at hand; measurements are written to it.
        held: Whether the cloud waits for drafts (`Pace.HOLD`).

    Attributes:
        known: As given; another one where the session moves to another cloud.
    """

    def __init__(self, policy: DraftPolicy, known: Estimates | None = None, *, held: bool = False) -> None:
        self._base, self._held = policy, held
        self.known = known or Estimates()
        self._passes = 0
        self._behind: tuple[float, int] | None = None
        self._commit_at: float | None = None

    def note_open(self, at: float, known: Estimates) -> None:
        """A stream to a cloud of which that is known was opened then (loop clock, seconds)."""
        self.known, self._behind, self._commit_at = known, None, at

    def note_ping(self, rtt_s: float, behind: int = 0) -> None:
        """A ping came back after that long; it went right behind a message of `behind` bytes, 0 if alone."""
        known = self.known
        if behind:
            # What the next one, alone, takes less is the time of these bytes.
            self._behind = rtt_s, behind
            return
        if self._behind is not None:
            known.note_bytes(self._behind[1], self._behind[0] - rtt_s)
            self._behind = None
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

    def note_commit(self, at: float, tokens: int) -> None:
        """A commit of that many tokens came (loop clock, seconds)."""
        if self._commit_at is not None:
            self.known.note_tokens(tokens, at - self._commit_at)
        self._commit_at = at

    def policy(self, place: float = 0.0) -> DraftPolicy:
        """The policy for the link, the drafter and the cloud as they are now.

        Args:
            place: Price of a place in the cloud (`worth.crowding`).
        """
        base, known = self._base, self.known
        if not base.adaptive or known.rtt_s is None or known.pass_s is None:
            return base
        least = floors(known, place, held=self._held)
        free_s = known.rtt_s + (0.0 if self._held else known.step_s or 0.0)
        passes = round(min(_DEEPER * base.depth, max(base.depth, free_s / max(known.pass_s, 1e-6))))
        far = not self._held and known.step_s is not None and known.rtt_s >= AWAITED_SHARE * known.step_s
        return replace(
            base,
            depth=_ENDLESS if far else passes,
            stop_survival=least.spare if far else least.awaited,
            ahead_survival=least.spare,
            sibling_survival=least.node,
            bursts_ahead=0 if far else base.bursts_ahead,
            coalesce_s=max(base.coalesce_s, min(_COALESCE_MOST_S, _COALESCE_SHARE * known.rtt_s)),
        )
