"""`outrider bench step`: whole steps of the engine, as the service runs them, over a model of a real shape.

Each case is told beside the time in which a copy of the same run would move what the step has to read (weights once,
keys and values once), beside a step of one row, and with what our own code adds to the forward. Some are told beside
the same step by `torch.compile`, which takes its time to compile and so comes last.
"""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from outrider_cloud.bench.compiled import compiled_step
from outrider_cloud.bench.jobs import Job
from outrider_cloud.bench.rig import Rig, engine_config, random_prompts
from outrider_cloud.bench.shapes import random_model, weight_bytes
from outrider_cloud.bench.stopwatch import Spread, Stopwatch
from outrider_cloud.engine.exactness import agreeing_buckets

if TYPE_CHECKING:
    import torch

    from outrider_cloud.model.loading import LoadedModel


@dataclass(frozen=True)
class Group:
    """Sessions at one context, stepped with one number of drafts after the other.

    Attributes:
        sessions: At once.
        context: Tokens of each prompt.
        drafts: Draft rows of each session; none of them is accepted, which costs a step the same.
        buckets: Of exact mode; none for natural shapes.
    """

    sessions: int
    context: int
    drafts: tuple[int, ...]
    buckets: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        exact = f", exact in {self.buckets}" if self.buckets else ""
        return f"{self.sessions} sessions, context {self.context}{exact}"

    def has(self, case: tuple[int, int, int]) -> bool:
        """Whether sessions, context and drafts are among its cases."""
        return (self.sessions, self.context) == case[:2] and case[2] in self.drafts


ON_A_CARD = (
    Group(1, 128, (0, 7, 15)),
    *(Group(n, 128, (7,)) for n in (4, 8, 16, 32)),
    *(Group(n, 128, (0,)) for n in (8, 32, 128, 256)),
    *(Group(n, context, (0, 7)) for n in (1, 8) for context in (2048, 8192, 32768)),
    *(Group(n, 128, (0, 7), (128,)) for n in (1, 16)),
    Group(1, 128, (0, 7), (32, 64, 128)),
)
ON_A_CPU = (
    Group(1, 64, (0, 7)),
    Group(4, 64, (0, 7)),
    Group(1, 256, (0, 7)),
    *(Group(n, 64, (0, 7), (32,)) for n in (1, 4)),
)
# Sessions, context and drafts of what is compiled, too: each is another compilation. All are in the groups above.
COMPILED_ON_A_CARD = ((1, 128, 0), (1, 128, 7), (8, 128, 0), (8, 2048, 7))
COMPILED_ON_A_CPU = ((1, 64, 0), (1, 64, 7), (4, 64, 0))
_EXACT_BUCKETS = {"cuda": (32, 64, 128), "cpu": (8, 16, 32)}


class StepBench:
    """The jobs, over one model that they share.

    Args:
        shape: Name of the model's shape.
        device: Where.
        dtype: Of the weights.
        warmup: Steps before those that count.
        repeats: Steps that count.
        compiled: Whether some steps are compared with `torch.compile`; `alone` leaves the others out.
    """

    def __init__(
        self,
        shape: str,
        device: torch.device,
        dtype: torch.dtype,
        warmup: int,
        repeats: int,
        compiled: Literal["with", "without", "alone"] = "with",
    ) -> None:
        self._shape, self._device, self._dtype = shape, device, dtype
        self._watch, self._compiling = Stopwatch(device, warmup, repeats), compiled
        self._bandwidth = 0.0
        self._walls: dict[tuple[int, int, int, tuple[int, ...]], float] = {}

    def jobs(self) -> list[Job]:
        """The copy bandwidth first, then whether rows are exact, then the groups."""
        on_card = self._device.type == "cuda"
        groups = ON_A_CARD if on_card else ON_A_CPU
        compared = () if self._compiling == "without" else COMPILED_ON_A_CARD if on_card else COMPILED_ON_A_CPU
        checks = [Job("do rows depend on their neighbours?", self._exactness)]
        if self._compiling == "alone":
            checks, groups = [], tuple(g for g in groups if not g.buckets and any(g.has(case) for case in compared))
        return [
            Job("copy bandwidth", self._copy),
            *checks,
            *(Job(group.name, functools.partial(self._group, group)) for group in groups),
            *(Job(_compiled_name(*case), functools.partial(self._compiled, *case)) for case in compared),
        ]

    @functools.cached_property
    def _loaded(self) -> LoadedModel:
        return random_model(self._shape, self._dtype, self._device)

    def _copy(self) -> dict[str, Any]:
        self._bandwidth = self._watch.copy_bytes_per_s()
        return {"gb_per_s": self._bandwidth / 1e9, "weight_gb": weight_bytes(self._loaded) / 1e9}

    def _exactness(self) -> dict[str, Any]:
        buckets = _EXACT_BUCKETS[self._device.type]
        rig = Rig(self._loaded, self._device, engine_config(4, 1024, 7, buckets))
        return {"buckets": buckets, "agreeing": agreeing_buckets(rig.runner)}

    def _group(self, group: Group) -> dict[str, Any]:
        steps = self._watch.warmup + self._watch.repeats
        tokens = group.context + 2 * len(group.drafts) * steps + 8
        config = engine_config(group.sessions, tokens, max(group.drafts), group.buckets)
        rig = Rig(self._loaded, self._device, config)
        prompts = random_prompts(group.sessions, group.context, self._loaded.vocabulary)
        rig.open(prompts, 2 * len(group.drafts) * steps + 8)
        cases = [self._case(group, rig, drafts) for drafts in group.drafts]
        return {"sessions": group.sessions, "context": group.context, "buckets": group.buckets, "cases": cases}

    def _case(self, group: Group, rig: Rig, drafts: int) -> dict[str, Any]:
        def refused(_: int, log: list[int]) -> list[int]:
            return [(log[-1] + 1) % self._loaded.vocabulary] * drafts

        times = [rig.step(refused if drafts else None) for _ in range(self._watch.warmup + self._watch.repeats)]
        times = times[self._watch.warmup :]
        wall, inside = Spread.of([t.wall for t in times]), Spread.of([t.inside for t in times])
        floor = self._floor_s(group)
        self._walls[group.sessions, group.context, drafts, group.buckets] = wall.median
        return {
            "drafts": drafts,
            "rows": round(statistics.median(t.rows for t in times)),
            "wall": wall.as_us(),
            "forward": inside.as_us(),
            "around_forward_us": statistics.median(t.wall - t.inside for t in times) * 1e6,
            "tokens_per_s": sum(t.tokens for t in times) / sum(t.wall for t in times),
            "floor_us": floor * 1e6,
            "of_copy": floor / wall.median,
            "of_one_row": self._ratio(wall.median, 1, group.context, 0, group.buckets),
            "of_natural": self._ratio(wall.median, group.sessions, group.context, drafts, ()),
        }

    def _compiled(self, sessions: int, context: int, drafts: int) -> dict[str, Any]:
        prompts = random_prompts(sessions, context, self._loaded.vocabulary)
        told = compiled_step(self._loaded, prompts, 1 + drafts, self._watch.warmup, self._watch.repeats)
        ours = self._walls.get((sessions, context, drafts, ()))
        ratio = told["median_us"] / (ours * 1e6) if ours and "median_us" in told else None
        case = {"sessions": sessions, "context": context, "drafts": drafts}
        return {**case, "compiled": told, "ours_us": ours and ours * 1e6, "of_ours": ratio}

    def _ratio(self, wall: float, *case: Any) -> float | None:
        """To another case of this run; None if that was not measured."""
        return wall / self._walls[case] if case in self._walls else None

    def _floor_s(self, group: Group) -> float:
        spec, layers = self._loaded.layers[0], len(self._loaded.layers)
        token = layers * spec.kv_heads * (spec.k_dim + spec.v_dim) * self._dtype.itemsize
        return (weight_bytes(self._loaded) + group.sessions * group.context * token) / self._bandwidth


def _compiled_name(sessions: int, context: int, drafts: int) -> str:
    return f"torch.compile, {sessions} sessions, context {context}, {sessions * (1 + drafts)} rows"
