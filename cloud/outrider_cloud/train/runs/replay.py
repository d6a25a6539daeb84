"""`outrider train replay`: a draft goes on learning where the fleet's drafts were refused.

The target scores the reported places, steps take from them and from what the draft learned from before (its samples, or
fresh ones), and both kinds are watched: what is gained there, and what it costs elsewhere.

Texts of devices lie in the work folder while a run needs them, for its owner alone, and are removed by `forget`.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from outrider_cloud.train import preflight
from outrider_cloud.train.distil.distillation import Distillation, Mixed
from outrider_cloud.train.distil.divergences import stored_loss
from outrider_cloud.train.distil.samples import score_into
from outrider_cloud.train.distil.validation import held_out_shard, validation_of
from outrider_cloud.train.loop.fit import Fit
from outrider_cloud.train.loop.folders import read_model, weights_dtype, write_model
from outrider_cloud.train.runs.inputs import ids_of, source_of, starts_of
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.documents import Reading
from outrider_cloud.train.texts.shards import META, Shard, ShardWriter, is_finished
from outrider_shared.chat import read_chat_template
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from outrider_cloud.train.loop.fit import Validate
    from outrider_cloud.train.loop.world import World
    from outrider_cloud.train.settings import ReplayRecipe
    from outrider_cloud.train.texts.reported import Counted, ReportedSource

_REPORTED, _HELD_OUT = "reported", "reported-held-out"
_GENTLER = "lower rates shake a trained draft less: --set fit.muon_lr=0.003 --set fit.adam_lr=5e-4"


@dataclasses.dataclass
class ReplayRun:
    """One draft, made better for one target.

    Attributes:
        target: Its folder.
        draft: Folder of the draft to go on from.
        before: Work folder of the run that made it; its samples are used again. What is not there is made anew.
        data: Texts for new samples, as of DraftRun.
        source: What fleets reported.
        work: Everything on the way; a run that was killed goes on from there.
    """

    target: Path
    draft: Path
    before: Path
    recipe: ReplayRecipe
    data: tuple[Path, ...]
    source: ReportedSource
    work: Path
    world: World
    reading: Reading = dataclasses.field(default_factory=Reading)
    say: Callable[[str], None] = print

    def run(self) -> dict[str, Any]:
        """Make the better draft's folder, `work/draft`; returns what was measured. Raises OutriderError."""
        config, counted = self._check()
        self.work.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = read_model(self.target, self.world.device).eval().requires_grad_(requires_grad=False)
        base, elsewhere = self._base(target, config)
        reported, held_out = (self._reported(target, held=held) for held in (False, True))
        self.say(
            f"{counted.records} answers with {counted.refused} refused drafts: {reported.meta.learned} places to learn,"
            f" {held_out.meta.learned} held out"
        )
        distil, fit = self.recipe.distil, self.recipe.fit
        mixed = Mixed(
            ShardCourse(base, distil.tokens_per_batch, distil.seed),
            ShardCourse(reported, distil.tokens_per_batch, distil.seed + 1),
            self.recipe.replay.share,
        )
        draft = read_model(self.draft, self.world.device)
        validate = self._both(elsewhere)
        first = validate(draft.eval())
        loss = stored_loss(distil.loss, distil.text_share)
        Fit(draft, mixed, loss, fit, self.work, validate, world=self.world).run()
        last = validate(draft.eval())
        figures = {
            "records": counted.records, "refused": counted.refused, "learned": reported.meta.learned,
            "steps": fit.steps, "before": first, "after": last,
        }  # fmt: skip
        if self.world.leads:
            write_model(draft.cpu(), self.work / "draft", self.target, weights_dtype(self.recipe.dtype))
            (self.work / "figures.json").write_text(json.dumps(figures, indent=1))
        self.world.wait()
        return figures

    def forget(self) -> None:
        """Remove the devices' texts from the work folder."""
        for name in (_REPORTED, _HELD_OUT):
            shutil.rmtree(self.work / name, ignore_errors=True)

    def _check(self) -> tuple[Any, Counted]:
        """All that can be known before the first step."""
        config = preflight.check_target(self.target).get_text_config()
        told = "the draft's model folder is PACK.work/draft, as `outrider train draft` leaves it; else give --draft DIR"
        shape = preflight.check_student(self.draft, self.target, told)
        preflight.check_precision(self.recipe.precision, shape)
        weights_dtype(self.recipe.dtype)
        distil, longest = self.recipe.distil, self.recipe.data.longest
        if distil.loss == "text":
            raise ConfigError("replay learns what the target would have said, by a divergence", hint="--loss mix")
        preflight.check_longest(longest, config, "target")
        if not self.data and self.recipe.data.source != "nothing" and not self._has_samples(config):
            raise ConfigError(
                f"{self.before} holds no samples of {self.target}, and without texts like those that the draft learned "
                "from it would forget them",
                hint="--data, as of `outrider train draft`, for the bundled pair with --set data.source=smart-home; or "
                "--set data.source=nothing, which lets the target write from its first token on",
            )
        counted = self.source.count()
        needed = preflight.distillation_bytes(distil, longest, config.vocab_size)
        needed += counted.tokens * (5 + 6 * distil.top_k)
        preflight.check_disk(self.work, needed, preflight.count_parameters(config))
        return config, counted

    def _has_samples(self, config: Any) -> bool:
        held_out = self.before / "held-out" / META
        return _made_for(self.before / "samples", self.target, config) and held_out.is_file()

    def _base(self, target: nn.Module, config: Any) -> tuple[Shard, Path]:
        """What the draft learned from before, and the folder of what was held out."""
        samples, held_out = self.before / "samples", self.before / "held-out"
        if self._has_samples(config):
            return Shard(samples), held_out
        self.say(f"{samples} holds no samples of {self.target}: making some")
        tokenizer = preflight.read_tokenizer(self.target)
        template = read_chat_template(self.target)
        source = source_of(self.recipe.data, self.data, tokenizer, template, self.reading, starts_of(config))
        whole: Any = target
        ends = frozenset(ids_of(whole.generation_config.eos_token_id) or ids_of(config.eos_token_id))
        run = Distillation(
            target, target, source, ends, self.recipe.distil, self.recipe.fit, self.work, world=self.world,
            say=self.say,
        )  # fmt: skip
        return run.base_shard(), held_out_shard(self.work / "held-out", target, source, ends, run)

    def _reported(self, target: nn.Module, *, held: bool) -> Shard:
        """A killed run goes on with the texts that it had, whatever the store holds by now."""
        folder = self.work / (_HELD_OUT if held else _REPORTED)
        source = json.dumps(
            [str(self.source.store), str(self.target), self.source.longest, dataclasses.asdict(self.source.config)]
        )
        if self.world.leads and not is_finished(folder, source):
            whole: Any = target
            vocabulary = whole.config.get_text_config().vocab_size
            k = min(self.recipe.distil.top_k, vocabulary)
            with ShardWriter(folder, vocabulary, source, k) as writer:
                score_into(writer, target, self.source.examples(held=held), k)
        self.world.wait()
        shard = Shard(folder)
        if not len(shard):
            raise ConfigError(
                f"too little traffic in {self.source.store}: no answer is {'held out' if held else 'left to learn'}",
                hint=f"{self.recipe.replay.held_out:.0%} of the answers are held out",
            )
        return shard

    def _both(self, elsewhere: Path) -> Validate:
        tokens, device = self.recipe.distil.tokens_per_batch, self.world.device
        there, here = (validation_of(folder, tokens, device) for folder in (elsewhere, self.work / _HELD_OUT))

        def validate(draft: nn.Module) -> dict[str, float]:
            with torch.no_grad():
                return {**here(draft), **{f"{name}_elsewhere": value for name, value in there(draft).items()}}

        return validate


def verdict(before: dict[str, float], after: dict[str, float]) -> str:
    """What to say of a run whose draft is not better, by chances of a refusal; empty where it is."""
    gained = before["valid"] - after["valid"]
    lost = after["valid_elsewhere"] - before["valid_elsewhere"]
    if gained <= 0:
        return f"not better where drafts were refused: keep the pack that there is, or go on otherwise ({_GENTLER})"
    if lost > gained:
        return f"more is lost elsewhere than gained where drafts were refused ({_GENTLER})"
    return ""


def _made_for(samples: Path, target: Path, config: Any) -> bool:
    """Whether a finished shard holds what this target wrote and scored."""
    if not (samples / META).is_file():
        return False
    meta = Shard(samples).meta
    try:
        written_by = Path(json.loads(meta.source)[0])
    except (ValueError, TypeError, IndexError):
        return False
    return bool(meta.top_k and meta.vocabulary == config.vocab_size and written_by.resolve() == target.resolve())
