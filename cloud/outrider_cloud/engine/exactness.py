"""Checks, before serving with `exact`, that on this machine a row's bits do not depend on what surrounds it.

Fixed shapes make it likely, nothing guarantees it: another BLAS, a mixture of experts that groups rows, or a fused
kernel may treat rows by their place. What fails here is refused rather than promised.

Several buckets may be used if they agree: the same rows have the same bits in each. The largest is the reference, and
smaller ones that disagree with it (a BLAS picks other kernels for very few rows) are not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from outrider_cloud.engine.batch import Batch
from outrider_cloud.kernels.layout import Segment
from outrider_shared.errors import ModelError
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from outrider_cloud.engine.runner import ModelRunner

_TRIALS = 3


def agreeing_buckets(runner: ModelRunner) -> tuple[int, ...]:
    """The buckets of a runner that give the same bits, ascending; the largest is always among them.

    Each is tried with rows computed together, among another session's rows, and one at a time.

    Raises:
        ModelError: if rows differ within the largest bucket: this model cannot be served exactly here.
    """
    largest = runner.buckets[-1]
    wrong = _disagreement(runner, largest, largest)
    if wrong:
        raise ModelError(
            f"{runner.loaded.name} cannot be served bit for bit here: {wrong}",
            hint="serve it without --exact, or try other --buckets",
        )
    return (*(b for b in runner.buckets[:-1] if not _disagreement(runner, b, largest)), largest)


def _disagreement(runner: ModelRunner, bucket: int, reference: int) -> str:
    """How rows in `bucket` differ from the same rows in `reference`; empty if they do not."""
    generator = np.random.default_rng(11)
    vocabulary, slots = runner.loaded.vocabulary, np.arange(runner.kv.slots)
    # Each session's slots begin with a block of its own, as the engine's do: kernels find them through pages.
    most = 1 << max(0, (runner.kv.slots // 4).bit_length() - 1)  # whole blocks, whatever their size
    first, second, third, fourth = (slots[i * most : (i + 1) * most] for i in range(4))
    for _ in range(_TRIALS):
        count = min(bucket, max(2, bucket // 2), most)
        tokens = generator.integers(0, vocabulary, count).tolist()
        others = generator.integers(0, vocabulary, min(bucket - count, most)).tolist()
        expected = runner.run(_batch([(tokens, first[:count])]), reference)
        beside = [(others, second[: len(others)]), (tokens, third[:count])]
        among = runner.run(_batch(beside), bucket)[len(others) :]
        alone = torch.cat([runner.run(_one(tokens, i, fourth), bucket) for i in range(count)])
        for name, rows in (("beside another session's rows", among), ("in a step of their own", alone)):
            same = int((expected == rows).all(-1).sum())
            if same != count:
                return f"{count - same} of {count} rows differ {name}"
    return ""


def _batch(parts: list[tuple[list[int], NDArray[np.int64]]]) -> Batch:
    """Fresh sessions, each a chain of tokens in given slots; every row chooses."""
    tokens = [token for part, _ in parts for token in part]
    positions = [i for part, _ in parts for i in range(len(part))]
    empty = np.zeros(0, np.int64)
    segments = [Segment(empty, slots, list(range(-1, len(part) - 1))) for part, slots in parts if part]
    rows = list(range(len(tokens)))
    return Batch(tokens, positions, segments, rows, [p + 1 for p in positions], [SamplingParams()] * len(rows))


def _one(tokens: list[int], index: int, slots: NDArray[np.int64]) -> Batch:
    """The step of plain decoding that computes one token."""
    segment = Segment(slots[:index], slots[index : index + 1], [-1])
    return Batch([tokens[index]], [index], [segment], [0], [index + 1], [SamplingParams()])
