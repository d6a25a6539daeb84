"""The acceptance table of the bundled pair: its target, its draft's size, its held-out requests."""

from __future__ import annotations

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from outrider_cloud.model.loading import bundled_model
from outrider_cloud.train.distil.acceptance import Answers, answers_of
from outrider_cloud.train.distil.distillation import Distillation
from outrider_cloud.train.distil.table import Table
from outrider_cloud.train.home.source import HomeSource
from outrider_cloud.train.home.texts import read_texts
from outrider_cloud.train.prune.cutting import prune
from outrider_cloud.train.prune.keep import Keep
from outrider_cloud.train.texts.chat import end_of
from outrider_cloud.train.texts.course import ShardCourse
from outrider_shared.chat import read_chat_template, render_chat

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from outrider_cloud.train.distil.distillation import DistilConfig
    from outrider_cloud.train.loop.config import FitConfig

TEMPERATURES = (0.0, 0.7, 1.0)
DRAFT_OF_TARGET = Keep(layers=2, hidden=128, heads=2, kv_heads=1, intermediate=352)
_CALIBRATION_BATCHES = 4

# As many parameters, and the heads that a model of this width would be given.
FRESH_DRAFT = {
    "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "intermediate_size": 352,
}  # fmt: skip


def fresh_draft(target: LlamaForCausalLM, seed: int = 2) -> nn.Module:
    """A draft of fresh weights, which knows nothing of its target but the vocabulary."""
    torch.manual_seed(seed)
    config: LlamaConfig = copy.deepcopy(target.config)
    config.update(FRESH_DRAFT)
    model: nn.Module = LlamaForCausalLM(config)
    return model


def bundled_requests(tokenizer: Tokenizer) -> list[list[int]]:
    """The held-out requests that ship with the package, as prompts."""
    path = Path(str(files("outrider_shared") / "bundled" / "requests.jsonl"))
    template = read_chat_template(bundled_model())
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [tokenizer.encode(render_chat(template, row["messages"])).ids for row in rows]


def load_target() -> tuple[LlamaForCausalLM, Tokenizer]:
    """The bundled target, to be read only, and its tokenizer."""
    folder = bundled_model()
    target = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(requires_grad=False)
    return target, Tokenizer.from_file(str(folder / "tokenizer.json"))


def held_out_answers(
    target: nn.Module, prompts: Sequence[Sequence[int]], ends: frozenset[int], folder: Path,
    temperatures: Sequence[float] = TEMPERATURES,
) -> list[Answers]:  # fmt: skip
    """The target's answers at each temperature, made once."""
    found = []
    for temperature in temperatures:
        path = folder / f"answers-{temperature:g}.json"
        if not path.exists():
            made = answers_of(target, prompts, ends, temperature)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(made.texts))
        texts = json.loads(path.read_text())
        found.append(Answers(temperature, [list(p) for p in prompts], texts, list(range(len(texts)))))
    return found


def home_table(data: Path, out: Path, base: DistilConfig, fit: FitConfig, say: Any = print) -> Table:
    """Everything that the rows share. Raises CorpusError."""
    target, tokenizer = load_target()
    source = HomeSource(read_texts(data), tokenizer)
    ends = frozenset({end_of(tokenizer)})
    answers = held_out_answers(target, bundled_requests(tokenizer), ends, out / "cache")
    pruned: list[nn.Module] = []

    def make(init: str) -> nn.Module:
        if init == "scratch":
            return fresh_draft(target)
        if not pruned:
            samples = Distillation(target, target, source, ends, base, fit, out / "cache", say=say).base_shard()
            course = ShardCourse(samples, 8192, seed=1)
            batches = [course.batch(step) for step in range(_CALIBRATION_BATCHES)]
            model, report = prune(target, batches, DRAFT_OF_TARGET)
            (out / "cache" / "pruned.json").write_text(json.dumps(report, indent=1))
            say(f"pruned: {report}")
            pruned.append(model)
        fresh: nn.Module = copy.deepcopy(pruned[0])
        for parameter in fresh.parameters():
            parameter.requires_grad = True
        return fresh

    return Table(target, make, source, ends, answers, base, fit, out, say)
