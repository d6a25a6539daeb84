"""Accepted tokens per cloud step under the real coupling: a cell is one draft at one temperature and shape."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from outrider_edge.session.events import GenerateRequest
from outrider_edge.session.policy import DraftPolicy
from outrider_pair.rounds import Answer, answer
from outrider_pair.statistics import ratio_interval
from outrider_pair.watch import CountedRuntime, device_drafter
from outrider_shared.calibration import PRIOR, Calibrations
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_cloud.engine.engine import Engine
    from outrider_pair.texts import Text
    from outrider_shared.drafting.runtime import DraftModel

CHAIN, TREE = "chain", "tree"
SHAPES = (TREE, CHAIN)


@dataclass(frozen=True)
class Plan:
    """What is asked of every draft alike.

    Attributes:
        texts: Requests, in order.
        temperatures: The first is the main one.
        max_tokens: Tokens of an answer at most.
        seed: Request i has seed + i, so all drafts meet the same noise.
        policy: How a device drafts; a chain is the same with width 1.
    """

    texts: Sequence[Text]
    temperatures: tuple[float, ...] = (0.0, 0.7, 1.0)
    max_tokens: int = 96
    seed: int = 0
    policy: DraftPolicy = field(default_factory=DraftPolicy)

    def params(self, index: int, temperature: float) -> SamplingParams:
        """Of one request."""
        return SamplingParams(temperature, seed=self.seed + index)

    def shaped(self, shape: str) -> DraftPolicy:
        """The policy of a shape."""
        return self.policy if shape == TREE else replace(self.policy, width=1)


@dataclass
class Cell:
    """All answers of one draft at one temperature and shape.

    Attributes:
        answers: One per request of the plan.
        passes: Rows of a draft pass -> number of passes.
    """

    temperature: float
    shape: str
    answers: list[Answer]
    passes: Counter[int]

    @property
    def tokens(self) -> list[float]:
        """Per request."""
        return [float(len(each.tokens)) for each in self.answers]

    @property
    def steps(self) -> list[float]:
        """Cloud steps that committed tokens, per request."""
        return [float(each.usage.steps) for each in self.answers]


def run_cell(
    engine: Engine, model: DraftModel, plan: Plan, temperature: float, shape: str, tick: Callable[[], None]
) -> Cell:
    """Answer every request of the plan; `tick` is called after each.

    The calibration starts from the pack's prior and learns along, as on a device.
    """
    runtime = CountedRuntime(model)
    calibration = Calibrations(model.manifest.survival or PRIOR)
    answers = []
    for index, text in enumerate(plan.texts):
        request = GenerateRequest(text.prompt, plan.max_tokens, plan.params(index, temperature))
        runtime.rewind(0)
        drafter = device_drafter(runtime, calibration)
        answers.append(answer(engine, request, drafter, plan.shaped(shape), calibration))
        tick()
    return Cell(temperature, shape, answers, runtime.passes)


def summary(cell: Cell, texts: Sequence[Text]) -> dict[str, Any]:
    """The cell's figures: in all, per domain, and by depth."""
    groups: dict[str, list[int]] = defaultdict(list)
    for index, text in enumerate(texts):
        groups[text.domain].append(index)
    tokens = sum(cell.tokens)
    return {
        "temperature": cell.temperature,
        "shape": cell.shape,
        **_figures(cell, range(len(texts))),
        "domains": {domain: _figures(cell, indices) for domain, indices in groups.items()},
        "by_depth": _by_depth(cell),
        "passes_per_token": {str(rows): count / tokens for rows, count in sorted(cell.passes.items())},
    }


def _figures(cell: Cell, indices: Sequence[int]) -> dict[str, Any]:
    tokens, steps = ([values[i] for i in indices] for values in (cell.tokens, cell.steps))
    drafted = sum(cell.answers[i].drafted for i in indices)
    accepted = sum(cell.answers[i].usage.accepted for i in indices)
    return {
        "requests": len(indices),
        "tokens": int(sum(tokens)),
        "steps": int(sum(steps)),
        "tokens_per_step": sum(tokens) / sum(steps),
        "interval": ratio_interval(tokens, steps),
        "accepted_of_drafted": accepted / max(1, drafted),
    }


def _by_depth(cell: Cell) -> list[dict[str, float]]:
    """Per depth: drafts that went as deep, and the share of those whose token there was committed."""
    bursts = [burst for each in cell.answers for burst in each.bursts]
    deepest = max((burst.depth for burst in bursts), default=0)
    rows = []
    for depth in range(1, deepest + 1):
        reached = [burst for burst in bursts if burst.depth >= depth]
        committed = sum(burst.accepted >= depth for burst in reached)
        rows.append({"depth": depth, "drafted": len(reached), "committed": committed / len(reached)})
    return rows
