"""How often the gates of a roll-out raise a false alarm, and how many windows they need to find a loss.

Whole roll-outs are simulated down to the windows of telemetry and fed through the same `Evidence` that the controller
feeds. Devices differ from each other and from window to window (prompts differ); a window's draft tokens are geometric
chains, as `simulate.behaviour` has them, its times per token are log-normal.

What a row says is of this model. Real fleets differ more or less; the bound on false alarms does not depend on that
(`rollout.sequential`), the number of windows does.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider_cloud.fleet.rollout.evidence import Baseline, Evidence, Window
from outrider_cloud.fleet.rollout.sequential import BettingTest
from outrider_cloud.fleet.rollout.spec import Gates
from outrider_cloud.fleet.simulate.behaviour import DEPTH
from outrider_shared.fleet.messages import LATENCY_EDGES_MS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_TOKENS = 40  # of an answer
_SPREAD = 0.25  # of the log of the time per token
_STEP_MS = 40.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A fleet as the simulation has it.

    Attributes:
        canaries, controls: Devices with the new and with the old draft.
        past: Windows of the old draft that each device showed before.
        answers: Per window.
        acceptance: Of the old draft, mean over the devices.
        device_spread, window_spread: Standard deviation of that between devices, and between windows of one device.
    """

    canaries: int = 5
    controls: int = 10
    past: int = 30
    answers: int = 15
    acceptance: float = 0.8
    device_spread: float = 0.05
    window_spread: float = 0.03


@dataclass(frozen=True, slots=True)
class Change:
    """What the new draft does: a share of the acceptance rate lost, and times per token multiplied."""

    name: str
    acceptance_loss: float = 0.0
    slower: float = 1.0


CHANGES = (
    Change("acceptance 5 % worse", 0.05),
    Change("acceptance 10 % worse", 0.10),
    Change("acceptance 20 % worse", 0.20),
    Change("time per token 1.1 x", slower=1.1),
    Change("time per token 1.2 x", slower=1.2),
    Change("time per token 1.5 x", slower=1.5),
)


def windows(
    scene: Scene, change: Change, rate: float, name: str, count: int, rng: np.random.Generator
) -> Iterator[Window]:
    """So many windows of one device whose own acceptance rate is `rate`."""
    spread = rng.normal(0, scene.window_spread, count)
    rates = np.clip((rate + spread) * (1 - change.acceptance_loss), 0.01, 0.99)
    per_step = np.sum([rates**depth for depth in range(DEPTH + 1)], axis=0)
    alive = np.rint(scene.answers * _TOKENS / per_step).astype(np.int64)
    tried, taken = np.zeros(count, np.int64), np.zeros(count, np.int64)
    for _ in range(DEPTH):
        tried += alive
        alive = rng.binomial(alive, rates)
        taken += alive
    times = rng.lognormal(0, _SPREAD, (count, scene.answers)) * (_STEP_MS * change.slower / per_step)[:, None]
    buckets = np.searchsorted(LATENCY_EDGES_MS, times)
    for row in range(count):
        latency = np.bincount(buckets[row], minlength=len(LATENCY_EDGES_MS) + 1)
        yield Window(name, int(taken[row]) / int(tried[row]), tuple(latency.tolist()))


def roll_out(
    scene: Scene, gates: Gates, change: Change, most: int, rng: np.random.Generator, until: str | None = None
) -> dict[str, int | None]:
    """Pairs of windows until each gate alarmed, None where it did not within `most`; ends when gate `until` did."""
    names = [f"c{i}" for i in range(scene.canaries)] + [f"k{i}" for i in range(scene.controls)]
    rates = dict(
        zip(names, np.clip(rng.normal(scene.acceptance, scene.device_spread, len(names)), 0.2, 0.97), strict=True)
    )
    lines = {}
    for name in names:
        line = Baseline()
        for window in windows(scene, Change(""), rates[name], name, scene.past, rng):
            line = line.plus(window)
        lines[name] = line
    evidence = Evidence(gates, lines, frozenset(names[: scene.canaries]))
    feeds = {
        name: windows(scene, change if name[0] == "c" else Change(""), rates[name], name, most, rng) for name in names
    }
    found: dict[str, int | None] = {"acceptance": None, "latency": None}
    for turn in range(most):
        evidence.observe(next(feeds[names[turn % scene.canaries]]), canary=True)
        evidence.observe(next(feeds[names[scene.canaries + turn % scene.controls]]), canary=False)
        for name, test in (("acceptance", evidence.acceptance), ("latency", evidence.latency)):
            if test.alarmed and found[name] is None:
                found[name] = test.pairs
        if until is not None and found[until] is not None:
            break
    return found


def upper_bound(events: int, runs: int, z: float = 1.645) -> float:
    """Upper end of the one-sided 95 % interval of a probability (Wilson 1927)."""
    share = events / runs
    middle, half = share + z * z / (2 * runs), z * math.sqrt(share * (1 - share) / runs + z * z / (4 * runs * runs))
    return min(1.0, (middle + half) / (1 + z * z / runs))


def false_alarms(scene: Scene, runs: int, most: int, seed: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Alarms where there is nothing to find, looked at after every pair of every run."""
    rows = []
    for alpha in (0.01, 0.05):
        strict = replace(Gates(), alpha=alpha, acceptance_margin=0.0, latency_margin=0.0)
        # The edge: exactly the loss that is tolerated. The doubt about baselines is tolerated beside it.
        edge = Change("", Gates().acceptance_margin / scene.acceptance)
        cases = (
            ("the new draft is the same", Gates(alpha=alpha), Change("")),
            ("the same, and nothing is tolerated", strict, Change("")),
            ("worse by exactly what is tolerated", Gates(alpha=alpha), edge),
        )
        for about, gates, change in cases:
            tell(f"{about}, alpha {alpha}")
            rng = np.random.default_rng(seed)
            found = [roll_out(scene, gates, change, most, rng) for _ in range(runs)]
            alarmed = {gate: sum(one[gate] is not None for one in found) for gate in found[0]}
            rows += [_alarms(about, gate, alpha, count, runs) for gate, count in alarmed.items()]
        rng, hits = np.random.default_rng(seed), 0
        tell(f"the bare test, alpha {alpha}")
        for _ in range(runs):
            test = BettingTest(alpha)
            for canary, control in rng.normal(scene.acceptance, scene.window_spread, (most, 2)).tolist():
                test.observe(canary, control)
            hits += test.alarmed
        rows.append(_alarms("the bare test on equal streams", "acceptance", alpha, hits, runs))
    return rows


def _alarms(about: str, gate: str, alpha: float, alarmed: int, runs: int) -> dict[str, Any]:
    told = {"case": about, "gate": gate, "alpha": alpha, "runs": runs, "alarms": alarmed}
    return told | {"share": alarmed / runs, "share_upper_95": round(upper_bound(alarmed, runs), 5)}


def losses(scene: Scene, runs: int, most: int, seed: int, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Pairs of windows until a loss is found, with the gates as they come."""
    rows = []
    for change in CHANGES:
        tell(change.name)
        rng = np.random.default_rng(seed)
        gate = "latency" if change.slower > 1 else "acceptance"
        found = [roll_out(scene, Gates(), change, most, rng, gate) for _ in range(runs)]
        pairs = sorted(pair for one in found if (pair := one[gate]) is not None)
        first = sorted(min(hits) for one in found if (hits := [pair for pair in one.values() if pair is not None]))
        rows.append({
            "change": change.name, "gate": gate, "runs": runs, "found": len(pairs) / runs, "within_pairs": most,
            "pairs_median": _at(pairs, runs, 0.5), "pairs_p95": _at(pairs, runs, 0.95),
            "pairs_median_of_either_gate": _at(first, runs, 0.5),
            "windows_per_canary_median": _share(_at(pairs, runs, 0.5), scene.canaries),
        })  # fmt: skip
    return rows


def _at(pairs: list[int], runs: int, share: float) -> int | None:
    """The quantile over all runs, those that found nothing at the end; None where it is one of these."""
    index = math.ceil(share * runs) - 1
    return pairs[index] if index < len(pairs) else None


def _share(pairs: int | None, devices: int) -> int | None:
    return None if pairs is None else math.ceil(pairs / devices)


def bench_gates(runs: int, most: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Both tables, with what they are of."""
    scene = Scene()
    return {
        "bench": "fleet gates",
        "units": {"pairs": "one window of a canary and one of a control", "share": "of runs"},
        "scene": asdict(scene),
        "gates": asdict(Gates()),
        "seed": seed,
        "false_alarms": false_alarms(scene, runs, most, seed, tell),
        "losses": losses(scene, max(1, runs // 5), 2 * most, seed + 1, tell),
    }
