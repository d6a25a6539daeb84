"""`outrider train draft`: from a target's folder to a pack, by a recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_cloud.model.loading import BUNDLED, bundled_draft
from outrider_cloud.train import preflight
from outrider_cloud.train.distil.acceptance import acceptance, answers_of
from outrider_cloud.train.distil.distillation import Distillation
from outrider_cloud.train.distil.validation import held_out_shard, validation_of
from outrider_cloud.train.loop.folders import read_model, weights_dtype, write_model
from outrider_cloud.train.prune.cutting import prune
from outrider_cloud.train.runs.inputs import ids_of, source_of, starts_of
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.documents import Reading
from outrider_cloud.train.texts.sources import NoSource, take
from outrider_shared.chat import read_chat_template

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from outrider_cloud.train.loop.fit import Validate
    from outrider_cloud.train.loop.world import World
    from outrider_cloud.train.settings import DraftRecipe
    from outrider_cloud.train.texts.sources import Source

_MEASURED = 48
_CALIBRATION_BATCHES = 4
_SHAPE = "[student.shape]"


@dataclasses.dataclass
class DraftRun:
    """One draft for one target.

    Attributes:
        target: Its folder.
        data: Text files or the smart-home folder; empty: the target's own samples alone.
        work: Everything on the way; a run that was killed goes on from there.
        texts: Where the target's texts lie, for runs that share them; by default in `work`.
    """

    target: Path
    recipe: DraftRecipe
    data: tuple[Path, ...]
    work: Path
    world: World
    reading: Reading = dataclasses.field(default_factory=Reading)
    say: Callable[[str], None] = print
    texts: Path | None = None

    def run(self) -> dict[str, Any]:
        """Make the draft's folder, `work/draft`; returns what was measured. Raises OutriderError."""
        config = self._check()
        self.work.mkdir(parents=True, exist_ok=True)
        target = read_model(self.target, self.world.device).eval().requires_grad_(requires_grad=False)
        tokenizer = preflight.read_tokenizer(self.target)
        source = source_of(
            self.recipe.data, self.data, tokenizer, read_chat_template(self.target), self.reading, starts_of(config)
        )
        ends = frozenset(ids_of(target.generation_config.eos_token_id) or ids_of(config.eos_token_id))
        distil = dataclasses.replace(
            self.recipe.distil,
            writing=dataclasses.replace(self.recipe.distil.writing, longest=self.recipe.data.longest),
        )
        run = Distillation(
            target, target, source, ends, distil, self.recipe.fit, self.work, self.texts, world=self.world, say=self.say
        )
        run.draft = self._student(target, run)
        run.validate = self._validation(target, source, ends, run)
        run.run()
        figures = {"parameters": sum(p.numel() for p in run.draft.parameters()), "steps": self.recipe.fit.steps}
        if self.world.leads:
            write_model(run.draft.cpu(), self.work / "draft", self.target, weights_dtype(self.recipe.dtype))
            figures |= self._measure(target.cpu(), run.draft, source, ends)
            (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        self.world.wait()
        return figures

    def _check(self) -> Any:
        """All that can be known before the first step."""
        config = preflight.check_target(self.target)
        text, student = config.get_text_config(), self.recipe.student
        weights_dtype(self.recipe.dtype)
        if student.init == "prune":
            preflight.check_export(text.model_type)
            shape = preflight.check_pruning(config, student.keep)
        elif student.init == "scratch":
            preflight.check_shape(student.shape)
            preflight.new_model(self._fields(text), student.seed, _SHAPE)
            shape = student.shape
        else:
            shape = preflight.check_student(_folder(student.init), self.target)
        preflight.check_precision(self.recipe.precision, shape)
        longest = self.recipe.data.longest
        preflight.check_longest(longest, text, "target")
        preflight.check_disk(
            self.work,
            preflight.distillation_bytes(self.recipe.distil, longest, text.vocab_size),
            preflight.count_parameters(config),
        )
        return text

    def _student(self, target: nn.Module, run: Distillation) -> nn.Module:
        student, text = self.recipe.student, target.config.get_text_config()  # type: ignore[union-attr, operator]
        if student.init == "scratch":
            fresh: nn.Module = preflight.new_model(self._fields(text), student.seed, _SHAPE)
            return fresh
        if student.init == "prune":
            course = ShardCourse(run.base_shard(), run.config.tokens_per_batch, seed=1)
            batches = [course.batch(step).to(self.world.device) for step in range(_CALIBRATION_BATCHES)]
            model, report = prune(target, batches, student.keep)
            self.say(f"pruned to {report['parameters_after']} parameters, layers {report['layers_kept']}")
            return model.requires_grad_(requires_grad=True)
        whole: nn.Module = read_model(_folder(student.init))
        return whole

    def _fields(self, text: Any) -> dict[str, Any]:
        """Of the configuration of a draft from scratch."""
        return {
            "model_type": "llama",
            "vocab_size": text.vocab_size, "max_position_embeddings": text.max_position_embeddings,
            "bos_token_id": text.bos_token_id, "eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id,
            "tie_word_embeddings": True, **self.recipe.student.shape,
        }  # fmt: skip

    def _validation(self, target: nn.Module, source: Source, ends: frozenset[int], run: Distillation) -> Validate:
        folder = held_out_shard((self.texts or self.work) / "held-out", target, source, ends, run)
        return validation_of(folder, run.config.tokens_per_batch, self.world.device)

    def _measure(self, target: nn.Module, draft: nn.Module, source: Source, ends: frozenset[int]) -> dict[str, Any]:
        found = []
        for temperature in (0.0, 0.7, 1.0):
            prompts = take(source.held_out_prompts(), _MEASURED)
            if isinstance(source, NoSource) and temperature > 0:
                prompts = (prompts * _MEASURED)[:_MEASURED]
            most = self.recipe.distil.writing.most
            found.append(acceptance(draft, answers_of(target, prompts, ends, temperature, most)))
        return {"acceptance": found}


def _folder(init: str) -> Path:
    """Where a student goes on from."""
    return bundled_draft() if init == BUNDLED else Path(init)
