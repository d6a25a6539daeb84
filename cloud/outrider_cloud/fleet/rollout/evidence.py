"""From windows of telemetry to the two sequential tests of a roll-out.

A window says for one device and one draft how many draft tokens were tried and taken, and how many answers fell into
which bucket of time per token. Rules:

1. A window counts if it tried at least `MIN_TRIED` tokens (for latency: had at least one answer).
2. A device's windows are compared with its own from before the roll-out (its *baseline*): devices differ more from each
   other than drafts do. A device with a baseline of fewer than `min_baseline` windows takes no part.
3. Windows pair up in the order in which they come, one of a canary device with one of a control device. What waits too
   long for a partner is forgotten, so that both of a pair are of about the same time.
4. Both margins grow by two standard errors of the baselines' means: their error does not average out over a roll-out,
   and would be taken for a loss.
5. An answer is slow if its time per token is above an edge near the p95 of before (`slow_edge`), chosen once.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.rollout.sequential import BettingTest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outrider_cloud.fleet.rollout.spec import Gates

MIN_TRIED = 20
_WAITING = 64
_MOST_SLOW = 0.3


@dataclass(frozen=True, slots=True)
class Window:
    """What one window of telemetry says about a draft.

    Attributes:
        acceptance: Draft tokens taken of those tried; None where too few were tried.
        latency: Counts of answers by bucket of time per token.
    """

    device: str
    acceptance: float | None
    latency: tuple[int, ...] = ()

    @classmethod
    def of(cls, device: str, tried: Sequence[int], taken: Sequence[int], latency: Sequence[int]) -> Window:
        """From the counts of a telemetry message."""
        total = sum(tried)
        return cls(device, sum(taken) / total if total >= MIN_TRIED else None, tuple(latency))


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a device did with its old draft: windows, sum and sum of squares of their acceptance, answers by bucket."""

    windows: int = 0
    total: float = 0.0
    square: float = 0.0
    latency: tuple[int, ...] = ()

    def plus(self, window: Window) -> Baseline:
        """With one more window."""
        latency = added(self.latency, window.latency)
        if window.acceptance is None:
            return Baseline(self.windows, self.total, self.square, latency)
        value = window.acceptance
        return Baseline(self.windows + 1, self.total + value, self.square + value * value, latency)

    @property
    def mean(self) -> float:
        """Mean acceptance of its windows."""
        return self.total / self.windows if self.windows else 0.0

    @property
    def error(self) -> float:
        """Standard error of that mean."""
        if self.windows < 2:
            return math.inf
        variance = max(0.0, self.square / self.windows - self.mean**2) * self.windows / (self.windows - 1)
        return math.sqrt(variance / self.windows)

    def slow_error(self, bucket: int) -> float:
        """Standard error of its share of answers above that bucket; a share of 0 or 1 is not taken for certain."""
        answers = sum(self.latency)
        if not answers:
            return math.inf
        share = (sum(self.latency[bucket + 1 :]) + 1) / (answers + 2)
        return math.sqrt(share * (1 - share) / answers)


def added(one: Sequence[int], other: Sequence[int]) -> tuple[int, ...]:
    """Two histograms as one."""
    size = max(len(one), len(other))
    padded = [[*counts, *[0] * (size - len(counts))] for counts in (one, other)]
    return tuple(a + b for a, b in zip(*padded, strict=True))


def quantile_bucket(counts: Sequence[int], share: float) -> int:
    """The first bucket at or below which `share` of the counts lie; 0 where there are none."""
    wanted, seen = share * sum(counts), 0
    for index, count in enumerate(counts):
        seen += count
        if seen >= wanted:
            return index
    return max(0, len(counts) - 1)


def slow_share(counts: Sequence[int], bucket: int) -> float | None:
    """Share of answers above that bucket; None where there are no answers."""
    total = sum(counts)
    return sum(counts[bucket + 1 :]) / total if total else None


def slow_edge(counts: Sequence[int]) -> int:
    """The bucket above which an answer is slow: the last that leaves 5 % of the answers or more above it.

    Buckets are a third wide. The one that holds the p95 may end far above it, and a moderate loss then stays within it;
    the one before may leave nearly everything above (all answers in one bucket), and then a loss changes nothing.
    """
    bucket = quantile_bucket(counts, 0.95)
    before = slow_share(counts, bucket - 1) if bucket else None
    return bucket - 1 if before is not None and before <= _MOST_SLOW else bucket


def _doubt(canaries: Sequence[float], controls: Sequence[float]) -> float:
    """Two standard errors of the difference of both groups' means."""
    finite = [[error for error in errors if math.isfinite(error)] for errors in (canaries, controls)]
    return 2 * math.sqrt(sum(sum(error**2 for error in group) / len(group) ** 2 for group in finite if group))


@dataclass(slots=True)
class Evidence:
    """The tests of one roll-out. Make it when the roll-out starts, with every baseline.

    Args:
        gates: Margins and alpha.
        baselines: By device, canary and control.
        canaries: Which of them get the new draft first.
    """

    gates: Gates
    baselines: Mapping[str, Baseline]
    canaries: frozenset[str]
    acceptance: BettingTest = field(init=False)
    latency: BettingTest = field(init=False)
    reference: int = field(init=False)
    _queues: dict[tuple[str, bool], deque[float]] = field(init=False)

    def __post_init__(self) -> None:
        gates = self.gates
        usable = {name: line for name, line in self.baselines.items() if line.windows >= gates.min_baseline}
        self.baselines = usable
        # Of a large fleet at once: one histogram after the other takes a second of 100,000 devices.
        histograms = [line.latency for line in usable.values()]
        self.reference = slow_edge([sum(counts) for counts in itertools.zip_longest(*histograms, fillvalue=0)])
        groups = [[line for name, line in usable.items() if (name in self.canaries) is new] for new in (True, False)]
        doubt = _doubt(*([line.error for line in group] for group in groups))
        self.acceptance = BettingTest(gates.alpha, gates.acceptance_margin + doubt)
        doubt = _doubt(*([line.slow_error(self.reference) for line in group] for group in groups))
        self.latency = BettingTest(gates.alpha, gates.latency_margin + doubt)
        self._queues = {(kind, canary): deque(maxlen=_WAITING) for kind in ("a", "l") for canary in (False, True)}

    def observe(self, window: Window, *, canary: bool) -> None:
        """Take a window of a device that runs the new draft (canary) or still the old one."""
        line = self.baselines.get(window.device)
        if line is None:
            return
        if window.acceptance is not None:
            self._pair("a", self.acceptance, window.acceptance - line.mean, canary=canary)
        now, before = slow_share(window.latency, self.reference), slow_share(line.latency, self.reference)
        if now is not None and before is not None:
            self._pair("l", self.latency, before - now, canary=canary)

    def _pair(self, kind: str, test: BettingTest, value: float, *, canary: bool) -> None:
        waiting = self._queues[kind, not canary]
        if not waiting:
            self._queues[kind, canary].append(value)
            return
        partner = waiting.popleft()
        test.observe(*((value, partner) if canary else (partner, value)))

    def dump(self) -> dict[str, Any]:
        """What the registry keeps beside the baselines: a controller that starts again goes on betting where it was."""
        return {
            "acceptance": self.acceptance.dump(), "latency": self.latency.dump(), "reference": self.reference,
            "canaries": sorted(self.canaries),
            "queues": [[kind, canary, list(values)] for (kind, canary), values in self._queues.items()],
        }  # fmt: skip

    @classmethod
    def load(cls, gates: Gates, baselines: Mapping[str, Baseline], state: Mapping[str, Any]) -> Evidence:
        """What `dump` gave."""
        found = cls(gates, baselines, frozenset(state["canaries"]))
        found.acceptance = BettingTest.load(state["acceptance"])
        found.latency = BettingTest.load(state["latency"])
        found.reference = state["reference"]
        for kind, canary, values in state["queues"]:
            found._queues[kind, canary].extend(values)
        return found
