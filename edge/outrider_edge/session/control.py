"""Draft parameters that follow the link: what a device does while a round trip and a step pass is free, no more is.

The thresholds of the policy are the floors of `worth`, from what is measured all the time: the round trip by pings that
the cloud's event loop answers (twice a second and more), the rate of the way up by what they waited behind (`uplink`),
the step and the pace by commits that follow each other, the pass by what the drafter took. The queue of the cloud shows
in the time of its steps and in its hint. What this device sent does not count as distance; the time of a message does.

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
from outrider_edge.session.worth import floors, message_s, per_message

if TYPE_CHECKING:
    from outrider_edge.session.policy import DraftPolicy

# New figures against old ones: two pings, or a few passes, move an estimate most of the way.
_RTT_WEIGHT, _PASS_WEIGHT = 0.8, 0.2
# Part of a round trip that nodes wait for company, or as long as a usual message takes on the way up; and the most.
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
        self._commit_at: float | None = None

    def note_open(self, at: float, known: Estimates) -> None:
        """A stream to a cloud of which that is known was opened then (loop clock, seconds)."""
        self.known, self._commit_at = known, at

    def note_ping(self, taken_s: float, sent_at: float = 0.0, *, opening: bool = False) -> None:
        """A ping that was sent then (loop clock, seconds), right behind an opening or not, took that long."""
        known = self.known
        rtt_s = known.uplink.note_ping(taken_s, sent_at, opening=opening)
        if rtt_s is None:
            return
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
        sent_s = message_s(known)
        away_s = known.rtt_s + sent_s
        free_s = away_s + (0.0 if self._held else known.step_s or 0.0)
        passes = round(min(_DEEPER * base.depth, max(base.depth, free_s / max(known.pass_s, 1e-6))))
        far = not self._held and known.step_s is not None and away_s >= AWAITED_SHARE * known.step_s
        return replace(
            base,
            depth=_ENDLESS if far else passes,
            stop_survival=least.spare if far else least.awaited,
            ahead_survival=least.spare,
            sibling_survival=least.node,
            bursts_ahead=0 if far else base.bursts_ahead,
            per_message=per_message(known, base.per_message),
            coalesce_s=max(base.coalesce_s, min(_COALESCE_MOST_S, max(_COALESCE_SHARE * known.rtt_s, sent_s))),
        )
