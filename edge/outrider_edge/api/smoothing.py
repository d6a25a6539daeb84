"""Spreads bursts: tokens that came at once leave one by one, evenly, up to about when the next burst is due.

Accepted drafts come in bursts of several tokens per round trip, which reads as a stutter on slow links. The price is
told: a token waits for at most one interval between bursts, `most_s` at the worst, those of the last burst, too. The
first burst leaves at once, since nobody knows yet when the next is due.
"""

from __future__ import annotations

_WEIGHT = 0.3  # of the latest interval in the moving average


class Pacer:
    """When each token of a stream may leave. Times in seconds of any clock.

    Args:
        most_s: No token waits longer than this.
    """

    def __init__(self, most_s: float = 0.25) -> None:
        self._most_s = most_s
        self._interval_s = 0.0
        self._burst_at: float | None = None
        self._last = 0.0

    def burst(self, now: float, count: int) -> list[float]:
        """Times at which the `count` tokens that just arrived may leave, ascending, the first ones not before `now`."""
        if self._burst_at is not None:
            interval = min(now - self._burst_at, self._most_s)
            known = self._interval_s
            self._interval_s = interval if known == 0.0 else (1 - _WEIGHT) * known + _WEIGHT * interval
        self._burst_at = now
        # What is still waiting of the burst before goes first; the end stays where the next burst is due.
        start = max(now, min(self._last, now + self._interval_s))
        end = now + self._interval_s
        gap = max(0.0, end - start) / max(1, count)
        times = [start + gap * i for i in range(count)]
        if times:
            self._last = times[-1] + gap
        return times
