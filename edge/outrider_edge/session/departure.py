"""When unsent nodes leave: in time for the cloud's next step, and no earlier, so that more of them share a message.

A message costs some twenty bytes before its first node, and a node that arrives while a step runs waits for the next
one anyway. The device sees the cloud's clock: steps follow each other, and each that served the session ended half a
round trip before its commit came. With a commit at `c`, steps of `T` and a round trip `R`, a node that leaves by
`c + k T - R` is there when the k-th step from then on begins. The first step begins when `Open` arrives.

Rules:
    * Nothing leaves while the way up is busy with what was sent before: it would wait there, and might die meanwhile.
    * Else nodes wait only while the cloud is busy for sure: its steps are known, and it is too far away to wait for
      drafts.
    * A step is taken to be as short as the short ones of late: to leave early costs bytes, to leave late costs a step.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outrider_edge.session.estimates import Estimates

# Towards a shorter step at once, towards a longer one slowly.
_SHORTER, _LONGER = 0.6, 0.1
# What leaves so long before the way up is free does not let it be idle.
_LEAD_S = 0.002
# For timers, the network stacks, and what the estimate of a step is off by.
_MARGIN_S, _MARGIN_SHARE = 0.001, 0.04
# Part of a step within which the cloud waits for drafts itself (its scheduler's rule for drafts that are nearly there).
AWAITED_SHARE = 0.6


class Departures:
    """Follows the cloud's steps on one stream.

    Args:
        known: Of that cloud; the time of a step is written to it.
    """

    def __init__(self, known: Estimates) -> None:
        self._known = known
        self._begins: float | None = None
        self._last: float | None = None

    def note_open(self, at: float) -> None:
        """`Open` left: a step begins when it arrives."""
        self._begins, self._last = at, None

    def note_commit(self, at: float, steps: int) -> None:
        """A commit of that many steps came."""
        if self._last is not None and steps:
            self._observe((at - self._last) / steps)
        self._last = at
        # What left a round trip ago arrived as the step began whose commit is on its way.
        self._begins = at - (self._known.rtt_s or 0.0)

    def leave_at(self, ready_at: float, now: float = 0.0) -> float | None:
        """When nodes that were ready then should leave; None if the cloud may be waiting for them, or for all we know.

        Args:
            ready_at: Loop clock, seconds.
            now: The same clock.
        """
        in_time, free_at = self._in_time(ready_at), self._known.uplink.free_at - _LEAD_S
        if free_at <= now:
            return in_time
        return free_at if in_time is None else max(in_time, free_at)

    def _in_time(self, ready_at: float) -> float | None:
        """The same for a way up that is free."""
        known, begins = self._known, self._begins
        if begins is None or known.step_s is None or known.rtt_s is None:
            return None
        if known.rtt_s < AWAITED_SHARE * known.step_s:
            return None
        margin_s = _MARGIN_S + _MARGIN_SHARE * known.step_s + 2.0 * known.jitter_s
        number = max(1, math.ceil((ready_at + margin_s - begins) / known.step_s))
        return begins + number * known.step_s - margin_s

    def _observe(self, taken_s: float) -> None:
        known = self._known
        if known.step_s is None:
            known.step_s = taken_s
        else:
            known.step_s += (_SHORTER if taken_s < known.step_s else _LONGER) * (taken_s - known.step_s)
