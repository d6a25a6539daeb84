"""Training texts on disk, read through the page cache: memory does not grow with them.

A shard is a folder; all numbers are little-endian:

    ids             [tokens]       uint16, or uint32 where the vocabulary is larger
    learn           [tokens]       uint8, 1 where the prediction OF this token is learned; never an example's first
    ends            [examples]     uint64, one past the example's last token
    learned_ends    [examples]     uint64, one past the example's last learned token, counted in learned tokens
    top_ids         [learned, k]   as `ids`: the target's likeliest tokens there (only if k > 0)
    top_logs        [learned, k]   float16, their log-probabilities
    meta.json       written last, so a folder without it is unfinished and is written anew
"""

import contextlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from outrider_cloud.train.texts.chat import Example
from outrider_shared.errors import ConfigError
from outrider_shared.files import storage_errors

META = "meta.json"
_FORMAT = 1


@dataclass(frozen=True)
class Meta:
    """What a shard holds; `source` says what it was made from, so that another run does not take it for its own."""

    vocabulary: int
    source: str
    top_k: int = 0
    examples: int = 0
    tokens: int = 0
    learned: int = 0
    format: int = _FORMAT

    @property
    def id_type(self) -> Any:
        """The numpy type of a token id."""
        return np.dtype("<u2") if self.vocabulary <= 1 << 16 else np.dtype("<u4")


class ShardWriter:
    """Writes a shard, example by example; as a context it finishes the shard unless an error ends it.

    Args:
        folder: Where; what an unfinished run left there is removed.
        vocabulary: Number of token ids.
        source: What it is made from.
        top_k: Of the target's tokens per learned position.
    """

    def __init__(self, folder: Path, vocabulary: int, source: str, top_k: int = 0) -> None:
        self._folder = folder
        self._meta = Meta(vocabulary, source, top_k)
        names = ("ids", "learn", "ends", "learned_ends", *(("top_ids", "top_logs") if top_k else ()))
        shutil.rmtree(folder, ignore_errors=True)
        with storage_errors(folder):
            folder.mkdir(parents=True)
            self._files: dict[str, BinaryIO] = {name: (folder / name).open("wb") for name in names}
        self.examples = self.tokens = self.learned = 0

    def add(
        self, example: Example, top_ids: NDArray[Any] | None = None, top_logs: NDArray[np.floating[Any]] | None = None
    ) -> None:
        """Append one example; with teacher, its tokens [learned, k] and their log-probabilities."""
        learn = example.learn.astype(np.uint8)
        learn[:1] = 0
        self.examples += 1
        self.tokens += len(learn)
        self.learned += int(learn.sum())
        self._write("ids", example.ids, self._meta.id_type)
        self._write("learn", learn, np.uint8)
        self._write("ends", np.array([self.tokens]), "<u8")
        self._write("learned_ends", np.array([self.learned]), "<u8")
        if self._meta.top_k:
            assert top_ids is not None
            assert top_logs is not None
            assert top_ids.shape == top_logs.shape == (int(learn.sum()), self._meta.top_k)
            self._write("top_ids", top_ids, self._meta.id_type)
            self._write("top_logs", top_logs, "<f2")

    def add_all(self, examples: Iterable[Example], context_share: float) -> None:
        """Append examples; of the tokens that they do not learn, a random `context_share` is learned, too."""
        rng = np.random.default_rng(self.examples)
        for example in examples:
            learn = example.learn | (rng.random(len(example.learn)) < context_share)
            self.add(Example(example.ids, learn))

    def _write(self, name: str, values: NDArray[Any], kind: Any) -> None:
        with storage_errors(self._folder):
            self._files[name].write(np.ascontiguousarray(values, dtype=kind).tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        with storage_errors(self._folder):
            self._finish(whole=kind is None)

    def _finish(self, *, whole: bool) -> None:
        with contextlib.ExitStack() as files:  # one that cannot be flushed leaves no other open
            for file in self._files.values():
                files.enter_context(file)
        if whole:
            totals = {"examples": self.examples, "tokens": self.tokens, "learned": self.learned}
            text = json.dumps(asdict(self._meta) | totals)
            part = self._folder / f"{META}.part"
            part.write_text(text)
            part.replace(self._folder / META)


def is_finished(folder: Path, source: str) -> bool:
    """Whether a finished shard made from `source` is there."""
    try:
        return bool(json.loads((folder / META).read_text())["source"] == source)
    except (OSError, ValueError, KeyError):
        return False


class Shard:
    """A finished shard, mapped into memory.

    Raises:
        ConfigError: there is none, or its files do not fit its meta.json.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.meta = Meta(**json.loads((folder / META).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{folder} is no finished shard: {error}", hint="delete it, and run again") from error
        meta, self._folder = self.meta, folder
        self.ids = self._map("ids", meta.id_type, (meta.tokens,))
        self.learn = self._map("learn", np.dtype(np.bool_), (meta.tokens,))
        self.ends = self._map("ends", np.dtype("<u8"), (meta.examples,))
        self.learned_ends = self._map("learned_ends", np.dtype("<u8"), (meta.examples,))
        shape = (meta.learned, meta.top_k)
        self.top_ids = self._map("top_ids", meta.id_type, shape) if meta.top_k else None
        self.top_logs = self._map("top_logs", np.dtype("<f2"), shape) if meta.top_k else None

    def __len__(self) -> int:
        """Number of examples."""
        return self.meta.examples

    def _map(self, name: str, kind: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        path, wanted = self._folder / name, int(np.prod(shape)) * kind.itemsize
        size = path.stat().st_size if path.is_file() else -1
        if size != wanted:
            raise ConfigError(f"{path} has {size} bytes instead of {wanted}", hint="delete the shard, and run again")
        return np.memmap(path, kind, "r", shape=shape) if wanted else np.zeros(shape, kind)

    def span(self, index: int) -> tuple[int, int]:
        """Half-open range of an example's tokens."""
        return int(self.ends[index - 1]) if index else 0, int(self.ends[index])

    def learned_span(self, index: int) -> tuple[int, int]:
        """Half-open range of an example's learned tokens, counted in learned tokens."""
        return int(self.learned_ends[index - 1]) if index else 0, int(self.learned_ends[index])

    def example(self, index: int) -> Example:
        """One example; copies, so that no map is held open by it."""
        first, last = self.span(index)
        return Example(np.array(self.ids[first:last]), np.array(self.learn[first:last]))
