"""What fleets reported as training texts: where a draft was refused, and a share of the places where none was.

A record longer than a text may be becomes several windows, each with at least half its length before what it learns;
every place is learned in one of them. Which records are held out is a function of their tokens, so that it is the same
in the next run, when the store holds more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from outrider_cloud.model.loading import fingerprint
from outrider_cloud.model.weights import Weights
from outrider_cloud.replay.reading import Contents, read_store
from outrider_cloud.train.texts.chat import Example
from outrider_cloud.train.texts.corpus import stable_hash
from outrider_shared.errors import ConfigError, MismatchError
from outrider_shared.packs import tokenizer_fingerprint

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from outrider_cloud.replay.records import Header, Record


@dataclass(frozen=True)
class ReplayConfig:
    """How reported texts are learned from.

    Attributes:
        share: Of steps on reported texts; the others are on what the draft learned from before.
        others: Of the places of an answer where no draft was refused, how many are learned, too: without any, a draft
            forgets there what it was right about.
        held_out: Share of the records that are kept apart.
    """

    share: float = 0.5
    others: float = 0.25
    held_out: float = 1 / 16

    def __post_init__(self) -> None:
        if not (0 < self.share <= 1 and 0 <= self.others <= 1 and 0 < self.held_out < 1):
            raise ConfigError(f"replay: share {self.share}, others {self.others}, held_out {self.held_out}")


@dataclass
class Counted:
    """What a store holds for this target.

    Attributes:
        records: Answers.
        tokens: Of them, with the text before.
        refused: Places.
        others: Records of other targets that were left out.
        contents: What the reader met.
    """

    records: int = 0
    tokens: int = 0
    refused: int = 0
    others: int = 0
    contents: Contents = field(default_factory=Contents)


@dataclass(frozen=True)
class ReportedSource:
    """A store's records for one target.

    Attributes:
        store: Folder that `outrider cloud serve --replay-dir` wrote, also while it writes.
        target: Folder of the model; its int8 form counts as the same.
        skip_others: Leave out what other targets refused instead of refusing the store.
    """

    store: Path
    target: Path
    config: ReplayConfig
    longest: int
    skip_others: bool = False

    def count(self) -> Counted:
        """Look through the store once. Raises ConfigError, MismatchError, StorageError."""
        counted = Counted()
        for record in self._records(counted):
            counted.records += 1
            counted.tokens += len(record.tokens)
            counted.refused += len(record.refused)
        if not counted.records:
            raise ConfigError(
                f"{self.store} holds no refused drafts of this target ({counted.contents.expired} segments are past "
                f"their time, {counted.others} records are of other targets)",
                hint="`outrider cloud serve --replay-dir` keeps them, of devices with --report-refused",
            )
        return counted

    def examples(self, *, held: bool) -> Iterator[Example]:
        """Records as texts; of those that are held out, every place of the answer is learned."""
        for record in self._records(Counted()):
            key = stable_hash("reported", *map(str, record.tokens))
            if (key < self.config.held_out * 2**64) == held:
                yield from windows(record, self.longest, 1.0 if held else self.config.others, key)

    def _records(self, counted: Counted) -> Iterator[Record]:
        ours = {fingerprint(self.target, weights) for weights in Weights}
        tokenizer = tokenizer_fingerprint((self.target / "tokenizer.json").read_bytes())
        for header, record in read_store(self.store, counted.contents):
            if header.target in ours and header.tokenizer == tokenizer:
                yield record
            elif self.skip_others:
                counted.others += 1
            else:
                self._refuse(header)

    def _refuse(self, header: Header) -> None:
        own = fingerprint(self.target)
        raise MismatchError(
            f"{self.store} holds drafts that {header.model} ({header.target[:12]}) refused; {self.target} is "
            f"{own[:12]}",
            hint="--skip-others leaves them out",
        )


def windows(record: Record, longest: int, others: float, seed: int) -> Iterator[Example]:
    """A record as texts of at most `longest` tokens, the end first; all its refused places, `others` of the rest."""
    ids = np.array(record.tokens, np.uint32)
    learn = np.random.default_rng(seed % 2**32).random(len(ids)) < others
    learn[: record.answer_start] = False
    learn[[each.position for each in record.refused]] = True
    learn[0] = False
    end = len(ids)
    while end > 1:
        start = max(0, end - longest)
        first = end - longest // 2 if start else 0  # what is learned here; the rest has its turn in the next window
        part = learn[start:end].copy()
        part[: first - start] = False
        if part.any():
            yield Example(ids[start:end], part)
        end = first
