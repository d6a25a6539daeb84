"""How a simulated device works: pure, given a random source.

Each draft token is accepted with the draft's rate as long as all before it in the burst were (a geometric chain, as if
each depth were alike); time per token is log-normal and falls with the tokens that a step brings.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError
from outrider_shared.fleet.messages import LATENCY_EDGES_MS

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

DEPTH = 6  # of a burst
_TOKENS = 40  # of an answer
_SPREAD = 0.25  # of the log of the time per token


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft model, as devices find it.

    Attributes:
        acceptance: Probability that a draft token is accepted where all before it were.
        failing: Share of updates to it that fail their self-test.
        token_ms: Time of one cloud step; a token takes that divided by the tokens of a step.
    """

    acceptance: float = 0.75
    failing: float = 0.0
    token_ms: float = 40.0

    def __post_init__(self) -> None:
        if not 0 <= self.acceptance <= 1 or not 0 <= self.failing <= 1 or self.token_ms <= 0:
            raise ConfigError(f"a draft with acceptance {self.acceptance}, failing {self.failing}, {self.token_ms} ms")


@dataclass(frozen=True, slots=True)
class Behaviour:
    """Of all devices.

    Attributes:
        drafts: Part of a target's path -> how that draft is.
        other: How every other draft is.
        requests_s: Answers per second.
        silent: Share of devices that say nothing more once they are to update.
        step_s: Mean time of one step of an update.
    """

    drafts: Mapping[str, Draft] = field(default_factory=dict)
    other: Draft = field(default_factory=Draft)
    requests_s: float = 0.5
    silent: float = 0.0
    step_s: float = 0.3

    def draft(self, target: str) -> Draft:
        """How the draft of that target is."""
        return next((draft for part, draft in self.drafts.items() if part in target), self.other)

    def window(self, target: str, seconds: float, random: random.Random) -> dict[str, Any]:
        """The fields of `Telemetry` for one window."""
        draft, requests = self.draft(target), _poisson(self.requests_s * seconds, random)
        tried, taken = [0] * DEPTH, [0] * DEPTH
        steps = tokens = accepted = 0
        counts, times = [0] * (len(LATENCY_EDGES_MS) + 1), []
        for _ in range(requests):
            made = done = 0
            while made < _TOKENS:
                depth = 0
                while depth < DEPTH:
                    tried[depth] += 1
                    if random.random() >= draft.acceptance:
                        break
                    taken[depth] += 1
                    depth += 1
                made, done, accepted = made + depth + 1, done + 1, accepted + depth
            tokens, steps = tokens + made, steps + done
            times.append(draft.token_ms * done / made * math.exp(random.gauss(0, _SPREAD)))
            counts[bisect.bisect_left(LATENCY_EDGES_MS, times[-1])] += 1
        times.sort()
        return {
            "requests": requests, "tokens": tokens, "cloud_steps": steps,
            "drafted": steps * DEPTH, "accepted": accepted,
            "tried": tuple(tried), "taken": tuple(taken), "token_ms": tuple(counts) if times else (),
            "p50_ms": times[len(times) // 2] if times else None,
            "p95_ms": times[min(len(times) - 1, int(0.95 * len(times)))] if times else None,
            "rtt_ms": 20.0 + 10 * random.random(), "bytes_up": 12 * steps, "bytes_down": 10 * steps,
            "temperature_c": 45.0 + 5 * random.random(),
        }  # fmt: skip


def _poisson(mean: float, random: random.Random) -> int:
    """How many events of a mean; by products of uniforms (Knuth), in pieces so that the exponential does not vanish."""
    count = 0
    while mean > 0:
        piece = min(mean, 50.0)
        bound, product = math.exp(-piece), random.random()
        while product > bound:
            count += 1
            product *= random.random()
        mean -= piece
    return count
