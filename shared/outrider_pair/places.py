"""Figures over all places of the target's texts: distance, hits, reliability of margins, bits per byte."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from outrider_pair.scores import Scores, bits, draft_logits, score, target_logits
from outrider_pair.statistics import auc, prior_of, reliability

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from tokenizers import Tokenizer

    from outrider_pair.cells import Cell, Plan
    from outrider_shared.drafting.runtime import DraftModel, DraftRuntime


def place_figures(
    model: DraftModel, target: torch.nn.Module, plan: Plan, cells: Sequence[Cell], tick: Callable[[], None]
) -> dict[str, Any]:
    """Per temperature, what the draft knows at each place of the target's answers (`cells`, one per temperature).

    Returns:
        `temperatures`: figures by temperature, and `survival`: the prior for a device's calibration, of all together.
    """
    runtime = model.new_runtime()
    figures, everything = {}, []
    for cell in cells:
        scores = []
        for index, (text, each) in enumerate(zip(plan.texts, cell.answers, strict=True)):
            tokens, first = [*text.prompt, *each.tokens], len(text.prompt)
            mine, theirs = draft_logits(runtime, tokens, first), target_logits(target, tokens, first)
            scores.append(score(mine, theirs, tokens, first, plan.params(index, cell.temperature)))
            tick()
        whole = _joined(scores)
        everything.append(whole)
        figures[f"{cell.temperature:g}"] = _figures(whole)
    together = _joined(everything)
    return {"temperatures": figures, "survival": prior_of(reliability(together.margin, together.hit))}


def _joined(parts: Sequence[Scores]) -> Scores:
    names = ("hit", "hit2", "margin", "probability", "entropy", "tv")
    return Scores(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _figures(scores: Scores) -> dict[str, Any]:
    return {
        "places": len(scores.hit),
        "accepted": float(scores.hit.mean()),
        "among_two": float(scores.hit2.mean()),
        "tv": float(scores.tv.mean()),
        "auc": {
            "margin": auc(scores.margin, scores.hit),
            "probability": auc(scores.probability, scores.hit),
            "entropy": auc(-scores.entropy, scores.hit),
        },
        "reliability": reliability(scores.margin, scores.hit),
    }


def bits_per_byte(
    model: DraftModel, target: torch.nn.Module, plan: Plan, answers: Cell, tokenizer: Tokenizer
) -> dict[str, dict[str, Any]]:
    """Per domain, bits per byte of draft and target on the data's own answers, else on the target's of `answers`.

    `nats_per_token` tells the same as the loss that training reports.
    """
    runtime = model.new_runtime()
    sums: dict[str, dict[str, Any]] = {}
    for text, each in zip(plan.texts, answers.answers, strict=True):
        wanted = tokenizer.encode(text.reference, add_special_tokens=False).ids if text.reference else each.tokens
        wanted = wanted[: max(0, runtime.capacity - len(text.prompt))]
        size = len(tokenizer.decode(wanted, skip_special_tokens=False).encode())
        if not size:
            continue
        kind = "the data's answers" if text.reference else f"the target's answers at T = {answers.temperature:g}"
        into = sums.setdefault(text.domain, {"text": kind, "bytes": 0, "tokens": 0, "draft": 0.0, "target": 0.0})
        for side, spent in _bits(runtime, target, text.prompt, wanted).items():
            into[side] += spent
        into["bytes"] += size
        into["tokens"] += len(wanted)
    return {domain: each | _rates(each) for domain, each in sums.items()}


def _rates(sums: dict[str, Any]) -> dict[str, Any]:
    sides = ("draft", "target")
    nats = {side: sums[side] * math.log(2) / sums["tokens"] for side in sides}
    return {side: sums[side] / sums["bytes"] for side in sides} | {"nats_per_token": nats}


def _bits(
    runtime: DraftRuntime, target: torch.nn.Module, prompt: Sequence[int], wanted: Sequence[int]
) -> dict[str, float]:
    tokens, first = [*prompt, *wanted], len(prompt)
    return {
        "draft": bits(draft_logits(runtime, tokens, first), wanted),
        "target": bits(target_logits(target, tokens, first), wanted),
    }
