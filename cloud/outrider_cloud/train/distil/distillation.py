"""One distillation from start to end: what is learned from, in rounds from off- to on-policy.

The target's own samples are made once. Where a share of the data is to be on-policy, each round begins with texts that
the draft of that moment writes and the target scores; steps then take from either by the share. A round's texts are on
disk before its first step, so a killed run goes on with the same ones.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, cast

from torch import nn

from outrider_cloud.train.distil.divergences import DIVERGENCES, stored_loss
from outrider_cloud.train.distil.samples import Writing, sampled_shard, score_into
from outrider_cloud.train.loop.config import FitConfig
from outrider_cloud.train.loop.fit import Fit, Validate
from outrider_cloud.train.loop.losses import text_loss
from outrider_cloud.train.loop.world import World
from outrider_cloud.train.texts.batches import Batch
from outrider_cloud.train.texts.corpus import stable_hash
from outrider_cloud.train.texts.course import ShardCourse
from outrider_cloud.train.texts.shards import Shard, ShardWriter, is_finished
from outrider_cloud.train.texts.sources import Source, take
from outrider_shared.errors import ConfigError

LOSSES = ("text", *DIVERGENCES)
DATA = ("samples", "text")


@dataclass(frozen=True)
class DistilConfig:
    """What a draft is distilled from, and by which loss.

    Attributes:
        data: `samples`: texts that the target writes; `text`: those of the corpus.
        loss: `text` (cross-entropy, no teacher) or a divergence.
        text_share: Of cross-entropy in the loss, beside the divergence.
        on_policy: Share of steps on the draft's own texts in the first and in the last round; linear between.
        rounds: How often the draft's texts are made anew.
        reuse: How often each of the draft's texts is learned from.
        prompts: Texts that the target writes (or corpus texts that it scores).
        top_k: Of the target's tokens stored per position.
        tokens_per_batch: Padding included.
        seed: Of order and samples.
    """

    data: str = "samples"
    loss: str = "mix"
    text_share: float = 0.0
    on_policy: tuple[float, float] = (0.0, 0.0)
    rounds: int = 6
    reuse: int = 2
    prompts: int = 6000
    top_k: int = 16
    tokens_per_batch: int = 4096
    seed: int = 17
    writing: Writing = field(default_factory=Writing)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES or self.data not in DATA:
            raise ConfigError(
                f"loss {self.loss!r} over data {self.data!r}",
                hint=f"losses: {', '.join(LOSSES)}; data: {', '.join(DATA)}",
            )
        if not all(0 <= share <= 1 for share in (*self.on_policy, self.text_share)):
            raise ConfigError(f"on_policy {list(self.on_policy)}, text_share {self.text_share}: shares are from 0 to 1")
        counts = ("rounds", "reuse", "prompts", "top_k", "tokens_per_batch")
        small = [f"{name} {getattr(self, name)}" for name in counts if getattr(self, name) < 1]
        if small:
            raise ConfigError(f"{', '.join(small)}: at least 1")

    def share(self, number: int) -> float:
        """Of on-policy steps in a round."""
        first, last = self.on_policy
        return first + (last - first) * number / max(1, self.rounds - 1)


class Mixed:
    """Steps from two series of batches: `share` of them, spread evenly, from the second."""

    def __init__(self, first: ShardCourse, second: ShardCourse, share: float) -> None:
        self._first, self._second, self._share = first, second, share

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        before = int(step * self._share + 1e-9)
        if int((step + 1) * self._share + 1e-9) > before:
            return self._second.batch(before)
        return self._first.batch(step - before)


@dataclass
class Distillation:
    """One run. `folder` holds everything that it makes; `cache` what further runs may share."""

    target: nn.Module
    draft: nn.Module
    source: Source
    ends: frozenset[int]
    config: DistilConfig
    fit: FitConfig
    folder: Path
    cache: Path | None = None
    validate: Validate | None = None
    world: World = field(default_factory=World)
    say: Callable[[str], None] = print

    def run(self) -> None:
        """From wherever an earlier run stopped to the end. Raises OutriderError."""
        base = self.base_shard()
        config = self.config
        loss = text_loss if config.loss == "text" else stored_loss(config.loss, config.text_share)
        course = ShardCourse(base, config.tokens_per_batch, config.seed)
        run = Fit(self.draft, course, loss, self.fit, self.folder, self.validate, world=self.world)
        run.resume()
        length = -(-self.fit.steps // (config.rounds if any(config.on_policy) else 1))
        while run.step < self.fit.steps and not run.stopped:
            number = run.step // length
            run.batches = self._round(number, course, length)
            run.run(stop_at=min(self.fit.steps, (number + 1) * length))

    def base_shard(self) -> Shard:
        """What is learned off-policy: made once for a target, a source and these settings."""
        kind = f"{self.config.data}{'' if self.taught else '-alone'}"
        folder, source = (self.cache or self.folder) / kind, self._describe()
        if self.world.leads and not is_finished(folder, source):
            self.say(f"making {folder}: {self.config.prompts} texts")
            if self.config.data == "samples":
                prompts = take(self.source.prompts(), self.config.prompts)
                self._sample(folder, self.target, prompts, source, self.config.seed)
            else:
                self._score_corpus(folder, source)
        self.world.wait()
        return Shard(folder)

    @property
    def taught(self) -> bool:
        """Whether the target must score the texts: its own it scores anyway."""
        return self.config.loss != "text" or self.config.data == "samples"

    def _describe(self) -> str:
        config = asdict(self.config)
        wanted = {name: config[name] for name in ("data", "prompts", "top_k", "seed", "writing")}
        wanted["taught"] = self.taught
        return json.dumps([cast("Any", self.target).config.name_or_path, self.source.name, wanted])

    def _sample(self, folder: Path, writer: nn.Module, prompts: list[list[int]], source: str, seed: int) -> None:
        sampled_shard(
            folder, [(writer, prompts)], self.target, self.ends, self.config.writing,
            k=self.config.top_k, seed=seed, source=source,
        )  # fmt: skip

    def _score_corpus(self, folder: Path, source: str) -> None:
        vocabulary = cast("Any", self.target).config.get_text_config().vocab_size
        k = min(self.config.top_k, vocabulary) if self.taught else 0
        examples = islice(self.source.examples(0), self.config.prompts)
        with ShardWriter(folder, vocabulary, source, k) as writer:
            if k:
                score_into(writer, self.target, examples, k)
            for example in examples:
                writer.add(example)

    def _round(self, number: int, course: ShardCourse, length: int) -> ShardCourse | Mixed:
        share = self.config.share(number)
        if share <= 0:
            return course
        folder, source = self.folder / f"round-{number}", f"round {number} of {self._describe()}"
        if self.world.leads and not is_finished(folder, source):
            mean = course.mean_length
            tokens = share * length * self.fit.micro_batches * self.config.tokens_per_batch
            count = max(1, int(tokens / mean / self.config.reuse))
            self.say(f"round {number}: the draft writes {count} texts, {share:.0%} of the steps")
            prompts = self._fresh_prompts(number, count)
            self._sample(folder, self.draft, prompts, source, stable_hash(self.config.seed, "round", number))
        self.world.wait()
        return Mixed(course, ShardCourse(Shard(folder), self.config.tokens_per_batch, self.config.seed + number), share)

    def _fresh_prompts(self, number: int, count: int) -> list[list[int]]:
        """Those after the ones of the rounds before."""
        whole = take(self.source.prompts(), (number + 1) * count)
        return whole[-count:]
