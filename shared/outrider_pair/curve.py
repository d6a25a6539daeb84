"""What pruning costs at several sizes: each pruned and healed, then judged as a draft and as a target of its own.

Every size learns from the same texts of the target, for as many steps. As a draft it meets the real engine and
device; as a target it is set beside the whole one on the same requests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.model.plain import plain_model
from outrider_cloud.pack.export import Request, export_pack
from outrider_cloud.train import preflight
from outrider_cloud.train.loop.world import World
from outrider_cloud.train.prune.keep import Keep
from outrider_cloud.train.runs.draft import DraftRun
from outrider_cloud.train.texts.documents import Reading
from outrider_pair.calls import call_figures
from outrider_pair.cells import TREE, run_cell, summary
from outrider_pair.plots import Series, draw_lines
from outrider_pair.quality import compare, continued
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.packs import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel
    from outrider_cloud.train.settings import DraftRecipe
    from outrider_pair.cells import Plan

_KEPT = ("temperature", "shape", "requests", "tokens", "steps", "tokens_per_step", "interval", "accepted_of_drafted")


@dataclass
class Curve:
    """All sizes of one target.

    Attributes:
        target: As the cloud serves it.
        recipe: How a size is healed; its start is always the pruned target.
        data: As of `outrider train draft`.
        plan: The requests that sizes are judged on.
        folder: Everything lies below it; a run that was killed goes on from there.
    """

    target: LoadedModel
    path: Path
    recipe: DraftRecipe
    data: tuple[Path, ...]
    plan: Plan
    folder: Path
    reading: Reading = field(default_factory=Reading)
    say: Callable[[str], None] = print

    def run(self, shares: Sequence[float]) -> list[dict[str, Any]]:
        """A row for each share of the parameters, and one for the whole target. Raises OutriderError."""
        config = preflight.check_target(self.path)
        for share in shares:
            preflight.check_pruning(config, Keep(share=share))
        return [*(self._row(share) for share in sorted(shares)), self._whole()]

    def _row(self, share: float) -> dict[str, Any]:
        place = self.folder / f"share-{share:g}"
        done = place / "row.json"
        if done.exists():
            found: dict[str, Any] = json.loads(done.read_text())
            return found
        self.say(f"{share:.0%} of the parameters: {self.recipe.fit.steps} steps")
        student = replace(self.recipe.student, init="prune", keep=Keep(share=share))
        recipe = replace(self.recipe, student=student)
        texts = self.folder / "texts"
        run = DraftRun(self.path, recipe, self.data, place, World(), self.reading, self.say, texts=texts)
        healed = run.run()
        row = {
            "share": share,
            "parameters": healed["parameters"],
            "steps": healed["steps"],
            "held_out": _last(place / "log.jsonl"),
            "as_draft": self._as_draft(place / "draft", place / "pack"),
            "as_target": self._as_target(place / "draft"),
        }
        done.write_text(json.dumps(row, indent=1) + "\n")
        return row

    def _as_draft(self, folder: Path, pack: Path) -> list[dict[str, Any]]:
        """Tokens per cloud step with the device's default tree, by temperature."""
        made = export_pack(Request(folder, pack, Precision(self.recipe.precision), folder.parent.name, force=True))
        engine, model = build_engine(self.target, EngineConfig()), DraftModel.load(made)
        cells = [run_cell(engine, model, self.plan, each, TREE, lambda: None) for each in self.plan.temperatures]
        figures = [summary(cell, self.plan.texts) for cell in cells]
        return [{name: each[name] for name in _KEPT} for each in figures]

    def _as_target(self, folder: Path) -> dict[str, Any]:
        """Its distribution beside the whole target's, and its own greedy answers' tool calls."""
        prompts = [text.prompt for text in self.plan.texts]
        base, judged = plain_model(str(self.path)), plain_model(str(folder))
        figures = compare(base, judged, prompts, self.plan.max_tokens, self.target.eos)
        return {**figures, "calls": self._calls(judged)}

    def _whole(self) -> dict[str, Any]:
        model = plain_model(str(self.path))
        parameters = sum(each.numel() for each in model.parameters())
        return {"share": 1.0, "parameters": parameters, "steps": 0, "as_target": {"calls": self._calls(model)}}

    def _calls(self, model: Any) -> dict[str, Any] | None:
        most, eos = self.plan.max_tokens, self.target.eos
        answers = [continued(model, text.prompt, most, eos) for text in self.plan.texts]
        decode = self.target.tokenizer.decode
        return call_figures(self.plan.texts, [decode(each, skip_special_tokens=False) for each in answers])


def draw(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Tokens per step and distance over the share of parameters, in one picture. Raises ConfigError."""
    sizes = [row for row in rows if "as_draft" in row]
    shares = [row["share"] for row in sizes]
    series = []
    for number, cell in enumerate(sizes[0]["as_draft"]):
        cells = [row["as_draft"][number] for row in sizes]
        low, high = ([each["interval"][end] for each in cells] for end in (0, 1))
        name = f"tokens per step, T = {cell['temperature']:g}"
        series.append(Series(name, shares, [each["tokens_per_step"] for each in cells], low, high))
    apart = [10 * row["as_target"]["tv"] for row in sizes]
    low, high = ([10 * row["as_target"]["tv_interval"][end] for row in sizes] for end in (0, 1))
    series.append(Series("total variation to the target, 10 x", shares, apart, low, high))
    upwards = "tokens per step; 10 x total variation"
    return draw_lines(path, series, title="The target pruned and healed", x="share of parameters that stays", y=upwards)


def _last(log: Path) -> dict[str, float]:
    """The last validation of a run: chance of a refusal, and divergence in nats, on held-out texts."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    return next({name: row[name] for name in ("valid", "kl")} for row in reversed(rows) if "valid" in row)
