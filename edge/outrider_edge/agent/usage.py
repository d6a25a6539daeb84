"""What the device did, counted as it happens and read off window by window. Cheap: a few integers per commit."""

from __future__ import annotations

import bisect
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_edge.session.events import Offline, Online, Origin, Reconnecting, SessionEvent, Tokens
from outrider_shared.fleet.messages import LATENCY_EDGES_MS

if TYPE_CHECKING:
    from collections.abc import Callable

_DEPTHS = 16
_SAMPLES = 10_000  # answers of a window whose latencies are kept


@dataclass(slots=True)
class Depths:
    """How far one answer's drafts were right.

    Every committed token tells the fate of one draft token: an accepted one was right at its depth below the last
    token that was the target's own; a correction means that the one at its depth was wrong; a bonus, that nothing was
    drafted there.
    """

    tried: list[int]
    taken: list[int]
    _depth: int = 0

    def see(self, origin: Origin) -> None:
        """Take one committed token."""
        place = min(self._depth, _DEPTHS - 1)
        if origin is Origin.ACCEPTED:
            self.tried[place] += 1
            self.taken[place] += 1
            self._depth += 1
            return
        if origin is Origin.CORRECTION:
            self.tried[place] += 1
        self._depth = 0


@dataclass(slots=True)
class _Window:
    """Counts since the last reading."""

    requests: int = 0
    tokens: int = 0
    cloud_steps: int = 0
    drafted: int = 0
    accepted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    draft_errors: int = 0
    offline_s: float = 0.0
    tried: list[int] = field(default_factory=lambda: [0] * _DEPTHS)
    taken: list[int] = field(default_factory=lambda: [0] * _DEPTHS)
    token_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)


class UsageMeter:
    """The host tells it every event and every finished answer; the agent reads a window at a time.

    Attributes:
        requests, draft_errors: Over the whole life, for probation.
        rtt_ms: Set by the host where it knows; smoothed.

    Without the cloud is the time from a stream's break to the next token or word that it is back, as long as an answer
    is waiting for it: while nobody asks, nobody knows.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._window = _Window()
        self._broken_at: float | None = None
        self._followed = 0
        self.requests = 0
        self.draft_errors = 0
        self.rtt_ms: float | None = None

    def follow(self) -> Follower:
        """A listener for the events of one answer; to be closed when the answer is over."""
        self._followed += 1
        return Follower(self)

    def answered(self, tokens: int, wall_s: float, first_s: float, totals: Any) -> None:
        """One answer is complete; `totals` is its `session.events.Totals`."""
        window = self._window
        self.requests += 1
        window.requests += 1
        window.tokens += tokens
        window.cloud_steps += totals.cloud_steps
        window.drafted += totals.drafted
        window.accepted += totals.accepted
        window.bytes_up += totals.uplink_bytes
        window.bytes_down += totals.downlink_bytes
        if tokens and len(window.token_ms) < _SAMPLES:
            window.token_ms.append(1000 * wall_s / tokens)
            window.first_ms.append(1000 * first_s)

    def draft_failed(self) -> None:
        """A draft pass raised."""
        self.draft_errors += 1
        self._window.draft_errors += 1

    def read(self) -> dict[str, Any]:
        """The fields of `Telemetry` for the window that ends now; the next begins."""
        window, self._window = self._window, _Window()
        if self._broken_at is not None:
            now = self._clock()
            window.offline_s, self._broken_at = window.offline_s + now - self._broken_at, now
        counts = [0] * (len(LATENCY_EDGES_MS) + 1)
        for value in window.token_ms:
            counts[bisect.bisect_left(LATENCY_EDGES_MS, value)] += 1
        deepest = max((i + 1 for i, tried in enumerate(window.tried) if tried), default=0)
        return {
            **{name: getattr(window, name) for name in (
                "requests", "tokens", "cloud_steps", "drafted", "accepted", "bytes_up", "bytes_down", "draft_errors",
                "offline_s",
            )},
            "tried": tuple(window.tried[:deepest]),
            "taken": tuple(window.taken[:deepest]),
            "token_ms": tuple(counts) if window.token_ms else (),
            "p50_ms": quantile(window.token_ms, 0.5),
            "p95_ms": quantile(window.token_ms, 0.95),
            "first_p50_ms": statistics.median(window.first_ms) if window.first_ms else None,
            "rtt_ms": self.rtt_ms,
        }  # fmt: skip

    def see(self, event: SessionEvent, depths: Depths) -> None:
        """Count one event of an answer."""
        if isinstance(event, Tokens):
            self._online()
            # A window may have been read meanwhile: count on in the present one.
            depths.tried, depths.taken = self._window.tried, self._window.taken
            for token in event.tokens:
                depths.see(token.origin)
        elif isinstance(event, Online):
            self._online()
        elif isinstance(event, Reconnecting | Offline) and self._broken_at is None:
            silent_s = event.silent_s if isinstance(event, Offline) else 0.0
            self._broken_at = self._clock() - silent_s

    def left(self) -> None:
        """An answer is over, in whatever way."""
        self._followed -= 1
        if not self._followed:
            self._online()

    def new_depths(self) -> Depths:
        """For one answer."""
        return Depths(self._window.tried, self._window.taken)

    def _online(self) -> None:
        if self._broken_at is not None:
            self._window.offline_s += self._clock() - self._broken_at
            self._broken_at = None


class Follower:
    """Listens to one answer's events for a meter."""

    def __init__(self, meter: UsageMeter) -> None:
        self._meter, self._depths = meter, meter.new_depths()

    def __call__(self, event: SessionEvent) -> None:
        """Count an event."""
        self._meter.see(event, self._depths)

    def close(self) -> None:
        """The answer is over."""
        self._meter.left()


def quantile(values: list[float], share: float) -> float | None:
    """The smallest value that at least that share does not exceed; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]
