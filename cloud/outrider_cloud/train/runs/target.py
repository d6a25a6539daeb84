"""`outrider train target`: any Hugging Face causal configuration on any texts."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_cloud.model.loading import model_folder
from outrider_cloud.train import preflight
from outrider_cloud.train.home.texts import read_texts
from outrider_cloud.train.loop.fit import Fit
from outrider_cloud.train.loop.folders import read_model, weights_dtype, write_model
from outrider_cloud.train.loop.losses import mean_loss, text_loss
from outrider_cloud.train.runs.inputs import files_of, source_of
from outrider_cloud.train.texts.chat import END, PAD, render
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.documents import Reading, read_documents
from outrider_cloud.train.texts.shards import Shard, ShardWriter, is_finished
from outrider_cloud.train.texts.vocabulary import train_vocabulary, write_tokenizer
from outrider_shared.chat import read_chat_template
from outrider_shared.errors import ConfigError, MismatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenizers import Tokenizer
    from torch import nn

    from outrider_cloud.train.loop.world import World
    from outrider_cloud.train.settings import TargetRecipe
    from outrider_cloud.train.texts.batches import Batch
    from outrider_cloud.train.texts.sources import Source

_VALIDATION_TOKENS = 200_000
_BYTES_PER_ID = 3  # uint16 and the flag of learning


@dataclasses.dataclass
class TargetRun:
    """One target. `out` becomes its folder; texts and checkpoints lie in `work`."""

    recipe: TargetRecipe
    data: tuple[Path, ...]
    out: Path
    work: Path
    world: World
    reading: Reading = dataclasses.field(default_factory=Reading)
    say: Callable[[str], None] = print

    def run(self) -> dict[str, Any]:
        """Train from wherever an earlier run stopped. Raises OutriderError."""
        if not self.data:
            raise ConfigError("no texts to train on", hint="--data FILE or --data DIR")
        weights_dtype(self.recipe.dtype)
        if self.init is not None:
            preflight.check_start(self.init, self.recipe.model, self.recipe.tokenizer)
        self.work.mkdir(parents=True, exist_ok=True)
        if self.world.leads:
            self._tokenizer()
        self.world.wait()
        tokenizer = preflight.read_tokenizer(self.work)
        model = self._model(tokenizer)
        preflight.check_longest(self.recipe.data.longest, model.config, "model")
        preflight.check_disk(self.work, self._text_bytes(), sum(p.numel() for p in model.parameters()))
        source = source_of(self.recipe.data, self.data, tokenizer, read_chat_template(self.work), self.reading, ())
        shard, held_out = self._shards(source, tokenizer)
        course = ShardCourse(shard, self.recipe.tokens_per_batch, seed=17)
        batches = self._validation(held_out)
        validate = partial(_validate, batches=batches)
        fit = Fit(model, course, text_loss, self.recipe.fit, self.work, validate, world=self.world)
        before = {} if self.init is None else {"before": validate(model.eval())}
        fit.run()
        figures = {"steps": fit.step, "parameters": sum(p.numel() for p in model.parameters()), **before}
        figures |= validate(model.eval())
        if self.world.leads:
            dtype = weights_dtype(self.recipe.dtype)
            write_model(model.cpu(), self.out, self.work, dtype, told={"training.json": figures})
        self.world.wait()
        return figures

    @property
    def init(self) -> Path | None:
        """The folder to go on from; None for fresh weights."""
        return model_folder(self.recipe.init) if self.recipe.init else None

    def _tokenizer(self) -> None:
        """Put tokenizer, its settings and the chat template into the work folder: given ones, or new ones."""
        given = Path(self.recipe.tokenizer) if self.recipe.tokenizer else self.init
        there = (self.work / "tokenizer.json").exists()
        if given is not None:
            folder = given if given.is_dir() else given.parent
            if not (folder / "tokenizer.json").is_file():
                raise ConfigError(f"no tokenizer.json at {given}", hint="tokenizer: a folder or a tokenizer.json")
            preflight.read_tokenizer(folder)
            if there:
                preflight.check_tokenizer(self.work, folder, hint="--force starts anew")
                return
            for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
                if (folder / name).is_file():
                    (self.work / name).write_bytes((folder / name).read_bytes())
            return
        if there:
            return
        self.say(f"training a tokenizer of {self.recipe.vocabulary} tokens")
        try:
            made = train_vocabulary(self._texts(), self.recipe.vocabulary)
        except ValueError as error:
            raise ConfigError(str(error), hint="another vocabulary, or more texts") from error
        write_tokenizer(made, self.work)

    def _texts(self) -> Iterator[str]:
        if self.recipe.data.source == "smart-home":
            yield from (render(chat) for chat in read_texts(self.data[0]).chats(0))
            return
        for document in read_documents(files_of(self.data), self.reading):
            yield document.text or "\n".join(str(message.get("content")) for message in document.messages)

    def _model(self, tokenizer: Tokenizer) -> nn.Module:
        if self.init is not None:
            whole: nn.Module = read_model(self.init)
            return whole
        fields = dict(self.recipe.model)
        if "model_type" not in fields:
            raise ConfigError("the recipe's [model] has no model_type", hint='such as model_type = "llama"')
        size = tokenizer.get_vocab_size()
        if fields.setdefault("vocab_size", size) < size:
            raise MismatchError(
                f"the tokenizer has {size} tokens, [model] vocab_size is {fields['vocab_size']}",
                hint="leave vocab_size out, or raise it",
            )
        ends, pads = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
        if ends is not None:
            fields = {"bos_token_id": None, "eos_token_id": ends, "pad_token_id": pads} | fields
        model: nn.Module = preflight.new_model(fields, self.recipe.seed, "[model]")
        return model

    def _text_bytes(self) -> int:
        # A token is hardly shorter than a byte of text; compressed files hold about five times their size.
        sizes = [
            f.stat().st_size * (5 if f.suffix == ".zst" else 1)
            for path in self.data
            for f in (path.rglob("*") if path.is_dir() else (path,))
            if f.is_file()
        ]
        return sum(sizes) * _BYTES_PER_ID * self.recipe.data.passes

    def _shards(self, source: Source, tokenizer: Tokenizer) -> tuple[Shard, Shard]:
        made = json.dumps([source.name, [str(p) for p in self.data], dataclasses.asdict(self.recipe.data)])
        folders = self.work / "texts", self.work / "held-out"
        if self.world.leads and not all(is_finished(folder, made) for folder in folders):
            self.say("turning texts into tokens")
            parts = self.recipe.data.passes
            with ShardWriter(folders[0], tokenizer.get_vocab_size(), made) as writer:
                writer.add_all(
                    (e for part in range(parts) for e in source.examples(part)), self.recipe.data.context_share
                )
            with ShardWriter(folders[1], tokenizer.get_vocab_size(), made) as writer:
                writer.add_all(source.held_out(), 0.0)
            self._tell_skipped()
        self.world.wait()
        shard, held_out = Shard(folders[0]), Shard(folders[1])
        if not shard.meta.learned or not held_out.meta.learned:
            raise ConfigError(
                f"{len(shard)} texts to train on and {len(held_out)} held out are too few", hint="give more texts"
            )
        return shard, held_out

    def _tell_skipped(self) -> None:
        if self.reading.skipped_count:
            self.say(f"skipped {self.reading.skipped_count} broken lines, the first: {self.reading.skipped[0]}")

    def _validation(self, shard: Shard) -> list[Batch]:
        course = ShardCourse(shard, self.recipe.tokens_per_batch, seed=0)
        count = min(_VALIDATION_TOKENS, shard.meta.tokens) // self.recipe.tokens_per_batch
        return [course.batch(step).to(self.world.device) for step in range(max(1, count))]


def _validate(model: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Cross-entropy of held-out text, in nats per learned token."""
    return {"valid": mean_loss(model, batches)}
