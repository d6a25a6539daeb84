"""What an update costs the requests that a device answers meanwhile: with and without one, in turns, in the same run.

Real processes on this machine: broker, service, cloud, and one device (`outrider edge serve --fleet`) that somebody
asks all the time. Broker and service, which are elsewhere in a real fleet, run at low priority. Each round is a quiet
stretch and then an update, from the moment that the roll-out is submitted until the device has committed it. Packs are
the bundled draft, filled up to a size with bytes that nothing reads; to every second one there is a delta from the one
before. Each answer's time is compared with the median of the same question's in the quiet stretches around it. Answers
of one round are alike in what else the machine did, so intervals come from drawing rounds, and answers within them.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.demo.asker import Answer, Asker
from outrider_cloud.fleet.demo.processes import Processes
from outrider_cloud.fleet.demo.setting import DEVICE, Setting, Stage, until
from outrider_shared.errors import DeadlineError
from outrider_shared.packs import describe_files, read_pack, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Round = tuple[list[float], list[float]]  # answers of one update, of the stretches around it

_FILLING = "filling.bin"
_MOST_S, _LOOK_S = 180.0, 0.5
_ENDED = {"committed", "failed", "rejected", "rolled_back"}
_RESAMPLED = 1000


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """How much.

    Attributes:
        rounds: Updates.
        quiet_s: Seconds without one before and after each.
        pack_mib: Size that the packs are filled up to.
        seed: Of the filling.
    """

    rounds: int = 8
    quiet_s: float = 8.0
    pack_mib: int = 48
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Monotonic seconds of one update; `delta` says whether a difference was there to fetch."""

    began: float
    ended: float
    delta: bool


def bench_update(plan: UpdatePlan, bundled: Path, tell: Callable[[str], None]) -> dict[str, Any]:
    """Play it.

    Raises:
        ConfigError: if Mosquitto is not installed.
        DeadlineError: if an update is not committed.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as temporary:
        folder = Path(temporary)
        with Processes(folder / "logs") as processes:
            stage = Stage(folder, Setting(bundled), processes)
            tell("starting broker, service, cloud and device")
            stage.serve()
            stage.answer()
            until(stage, lambda: bool(_get(stage, "/overview")["online"]), 60)
            processes.yielding("broker", "service")
            asker = Asker(stage.endpoint, pause_s=0.02)
            asker.start()
            try:
                stretches = _rounds(stage, folder, bundled, plan, tell)
            finally:
                asker.end()
    return {
        "bench": "fleet update", "units": {"*_s": "seconds", "slowdown": "share; 0.05 is 5 % longer"},
        **dataclasses.asdict(plan), **compared(asker.answers, stretches, plan.quiet_s),
        "lost": len(asker.lost), "texts_of_a_question": asker.texts,
    }  # fmt: skip


def _rounds(stage: Stage, folder: Path, bundled: Path, plan: UpdatePlan, tell: Callable[[str], None]) -> list[Stretch]:
    targets = [_published(stage, folder, bundled, plan, number) for number in range(plan.rounds)]
    stage.client.call("PATCH", "/config", {"probation_requests": 1, "probation_s": 600.0})
    _looking(stage, 2 * plan.quiet_s)  # the first answers warm everything up and are not looked at
    stretches = []
    for number, target in enumerate(targets):
        tell(f"update {number + 1} of {plan.rounds}")
        began = time.monotonic()
        _update(stage, f"round-{number}", target)
        stretches.append(Stretch(began, time.monotonic(), bool(number % 2)))
        _looking(stage, plan.quiet_s)
    return stretches


def _looking(stage: Stage, seconds: float) -> None:
    """Nothing happens, and it is looked at as often as an update is."""
    end = time.monotonic() + seconds
    until(stage, lambda: bool(_get(stage, f"/devices/{DEVICE}")) and time.monotonic() > end, 2 * seconds, _LOOK_S)


def _published(stage: Stage, folder: Path, bundled: Path, plan: UpdatePlan, number: int) -> str:
    """Odd numbers differ from the one before in a few places; even ones in every byte."""
    pack = folder / f"pack-{number}"
    shutil.copytree(bundled, pack)
    filling = bytearray(random.Random(plan.seed + number // 2).randbytes(plan.pack_mib << 20))  # noqa: S311 - filling
    filling[:8] = number.to_bytes(8, "big")
    (pack / _FILLING).write_bytes(filling)
    manifest = dataclasses.replace(read_pack(bundled).manifest, name=f"pack-{number}", files=describe_files(pack))
    write_manifest(pack, manifest)
    return publish(stage.home.repository, pack, version="1", deltas=number % 2)


def _update(stage: Stage, name: str, target: str) -> None:
    gates = {"acceptance": False, "latency": False, "min_executed": 1, "max_failed": 0.0}
    body = {"name": name, "target": target, "control_percent": 0.0, "gates": gates, "per_minute": 600.0}
    stage.client.call("POST", "/rollouts", {**body, "stages": [{"percent": 100, "soak_s": 0.0}]})
    stage.client.call("POST", f"/rollouts/{name}/submit")
    found: dict[str, Any] = {}

    def ended() -> bool:
        rows = [row for row in _get(stage, f"/devices/{DEVICE}")["rollouts"] if row["rollout"] == name]
        found.update(rows[0] if rows else {})
        return found.get("state") in _ENDED

    until(stage, ended, _MOST_S, _LOOK_S)
    if found.get("state") != "committed":
        raise DeadlineError(f"{name} is {found.get('state')} after {_MOST_S:g} s: {found.get('message')}")


def compared(answers: Sequence[Answer], stretches: Sequence[Stretch], quiet_s: float) -> dict[str, Any]:
    """Answers of updates beside those of the quiet stretches around them."""
    rounds = []
    for stretch in stretches:
        near = [a for a in answers if stretch.began - quiet_s <= a.at < stretch.ended + quiet_s]
        inside = [a for a in near if a.at + a.seconds > stretch.began and a.at < stretch.ended]
        around = [a for a in near if a.at + a.seconds <= stretch.began or a.at >= stretch.ended]
        rounds.append((_ratios(inside, around), _ratios(around, around)))
    busy, calm = _joined(rounds)
    return {
        "answers_in_updates": len(busy), "answers_between": len(calm),
        "update_s_median": round(statistics.median(s.ended - s.began for s in stretches), 2),
        "update_s_with_delta_median": round(statistics.median(s.ended - s.began for s in stretches if s.delta), 2),
        "answer_s_between_median": round(statistics.median(a.seconds for a in answers), 4),
        **{f"slowdown_{name}": _slowdown(rounds, taken) for name, taken in _COMPARED.items()},
        "slowest_in_updates": round(max(busy), 2), "slowest_between": round(max(calm), 2),
    }  # fmt: skip


def _ratios(answers: Sequence[Answer], reference: Sequence[Answer]) -> list[float]:
    """Each answer's time by the median of the same question's."""
    usual: dict[int, list[float]] = {}
    for answer in reference:
        usual.setdefault(answer.question, []).append(answer.seconds)
    return [a.seconds / statistics.median(usual[a.question]) for a in answers if a.question in usual]


def _joined(rounds: Sequence[Round]) -> tuple[list[float], list[float]]:
    return [ratio for busy, _ in rounds for ratio in busy], [ratio for _, calm in rounds for ratio in calm]


def _slowdown(rounds: Sequence[Round], of: Callable[[Sequence[float]], float]) -> dict[str, float]:
    """A figure of the answers in updates by that of the others, less one; with 95 % of what resampling gives."""
    lot = random.Random(0)  # noqa: S311 - resampling

    def found(chosen: Sequence[Round]) -> float:
        busy, calm = _joined(chosen)
        return of(busy) / of(calm) - 1

    again = sorted(
        found([tuple(lot.choices(part, k=len(part)) for part in lot.choice(rounds)) for _ in rounds])  # type: ignore[misc]
        for _ in range(_RESAMPLED)
    )
    low, high = again[int(0.025 * _RESAMPLED)], again[int(0.975 * _RESAMPLED)]
    return {"found": round(found(rounds), 4), "low_95": round(low, 4), "high_95": round(high, 4)}


def _at(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


_COMPARED: dict[str, Callable[[Sequence[float]], float]] = {
    "median": statistics.median, "mean": statistics.fmean, "p95": lambda values: _at(values, 0.95),
}  # fmt: skip


def _get(stage: Stage, path: str) -> Any:
    return stage.client.call("GET", path, timeout_s=60.0)
