"""The acceptance table: which initialisation, which data, which loss. Same size, steps and tokens in every row.

Each row is one distillation; the target's samples and its answers to the held-out requests are made once for all.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from outrider_cloud.train.distil.acceptance import acceptance
from outrider_cloud.train.distil.distillation import DistilConfig, Distillation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from outrider_cloud.train.distil.acceptance import Answers
    from outrider_cloud.train.loop.config import FitConfig
    from outrider_cloud.train.texts.sources import Source


@dataclass(frozen=True)
class Row:
    """One way to make a draft."""

    name: str
    init: str  # scratch or pruned
    data: str = "samples"
    loss: str = "forward-kl"
    on_policy: tuple[float, float] = (0.0, 0.0)
    text_share: float = 0.0
    breadth: int = 1  # texts in units of the table's `prompts`: those that need no teacher are cheap

    def config(self, base: DistilConfig) -> DistilConfig:
        """The distillation of this row."""
        return replace(
            base,
            data=self.data,
            loss=self.loss,
            on_policy=self.on_policy,
            text_share=self.text_share,
            prompts=base.prompts * self.breadth,
        )


SUPERVISED = "supervised, scratch"
ROWS = (
    Row(SUPERVISED, "scratch", data="text", loss="text", breadth=4),
    Row("off-policy forward KL, pruned", "pruned"),
    Row("off-policy coupling + KL, pruned", "pruned", loss="coupled-kl"),
    Row("off-policy forward KL, scratch", "scratch"),
    Row("supervised, pruned", "pruned", data="text", loss="text", breadth=4),
    Row("off-policy total variation, pruned", "pruned", loss="tv"),
    Row("off-policy reverse KL, pruned", "pruned", loss="reverse-kl"),
    Row("off-policy KL + TV, pruned", "pruned", loss="mix"),
    Row("off- to on-policy forward KL, pruned", "pruned", on_policy=(0.0, 1.0)),
    Row("off-policy coupling, pruned", "pruned", loss="coupling"),
    Row("samples as text (sequence level), pruned", "pruned", loss="text"),
    Row("on-policy forward KL, pruned", "pruned", on_policy=(1.0, 1.0)),
    Row("forward KL on the corpus, pruned", "pruned", data="text"),
)


@dataclass
class Table:
    """What all rows share.

    Attributes:
        target: The teacher.
        make: A fresh draft of an initialisation.
        source: Of prompts and texts.
        ends: End tokens.
        answers: The target's held-out answers, one set a temperature.
        base: Settings of distillation that rows do not change.
        fit: Of training.
        folder: Everything lies below it; rows that are there are not made again.
    """

    target: nn.Module
    make: Callable[[str], nn.Module]
    source: Source
    ends: frozenset[int]
    answers: Sequence[Answers]
    base: DistilConfig
    fit: FitConfig
    folder: Path
    say: Callable[[str], None] = print

    def run(self, rows: Sequence[Row] = ROWS) -> list[dict[str, Any]]:
        """Make every row, each written down as soon as it is known."""
        return [self.row(row) for row in rows]

    def row(self, row: Row) -> dict[str, Any]:
        """Train and measure one row; one that was made before is read."""
        place = self.folder / "rows" / "".join(c if c.isalnum() else "-" for c in row.name)
        done = place / "row.json"
        if done.exists():
            found: dict[str, Any] = json.loads(done.read_text())
            return found
        started = time.perf_counter()
        draft = self.make(row.init)
        config = row.config(self.base)
        Distillation(
            self.target, draft, self.source, self.ends, config, self.fit, place, self.folder / "cache", say=self.say
        ).run()
        torch.save(draft.state_dict(), place / "draft.pt")
        result = {
            "name": row.name,
            "init": row.init,
            "data": row.data,
            "loss": row.loss,
            "on_policy": list(row.on_policy),
            "parameters": sum(p.numel() for p in draft.parameters()),
            "steps": self.fit.steps,
            "seconds": round(time.perf_counter() - started),
            "acceptance": [acceptance(draft, answers) for answers in self.answers],
        }
        done.write_text(json.dumps(result, indent=1))
        self.say(summary(result))
        return result


def summary(result: dict[str, Any]) -> str:
    """A row in one line."""
    parts = [
        f"T={a['temperature']:g} {a['accepted']:.3f} {a['tree']['tokens_per_step']:.2f}" for a in result["acceptance"]
    ]
    return f"{result['name']}: {'  '.join(parts)}  ({result['seconds']} s)"


def as_markdown(results: Sequence[dict[str, Any]]) -> str:
    """The table as people read it: tokens per step with a tree, the gain over plain supervised training."""
    plain = next((r for r in results if r["name"] == SUPERVISED), results[0])
    heat = [a["temperature"] for a in plain["acceptance"]]
    head = "| draft | " + " | ".join(f"T = {t:g}: accepted, chain of 4, tree" for t in heat) + " | against plain |"
    lines = [head, "|---" * (len(heat) + 2) + "|"]
    for result in results:
        cells = [
            f"{a['accepted']:.1%}, {a['chain']['tokens_per_step']:.2f}, **{a['tree']['tokens_per_step']:.2f}** "
            f"({a['tree']['low']:.2f}-{a['tree']['high']:.2f})"
            for a in result["acceptance"]
        ]
        lines.append(f"| {result['name']} | {' | '.join(cells)} | {gain(result, plain):+.1%} |")
    return "\n".join(lines) + "\n"


def gain(result: dict[str, Any], plain: dict[str, Any]) -> float:
    """Mean over temperatures of the tree's tokens per step, against the plain row's."""
    ours, theirs = (sum(a["tree"]["tokens_per_step"] for a in r["acceptance"]) for r in (result, plain))
    return float(ours / theirs - 1)
