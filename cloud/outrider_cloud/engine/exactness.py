"""Checks, before serving with `exact`, that on this machine a row's bits do not depend on what surrounds it.

Fixed shapes make it likely, nothing guarantees it: another BLAS, a mixture of experts that groups rows, or a fused
kernel may treat rows by their place. What fails here is refused rather than promised.
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

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import ModelRunner

_MOST_ROWS = 6


def check_exact(runner: ModelRunner, config: EngineConfig) -> None:
    """Compare rows computed together, among another session's rows, and one at a time.

    Raises:
        ModelError: if any bit differs.
    """
    count = min(_MOST_ROWS, config.bucket, config.kv_tokens // 4)
    generator = np.random.default_rng(11)
    vocabulary = runner.loaded.vocabulary
    tokens = generator.integers(0, vocabulary, count).tolist()
    others = generator.integers(0, vocabulary, min(config.bucket - count, config.kv_tokens // 4)).tolist()
    slots = np.arange(config.blocks * config.block_size)
    together = runner.run(_batch([(tokens, slots[:count])]))
    beside = slots[2 * count : 2 * count + len(others)]
    among = runner.run(_batch([(others, beside), (tokens, slots[count : 2 * count])]))[len(others) :]
    alone = torch.cat([runner.run(_one(tokens, i, slots)) for i in range(count)])
    for name, rows in (("another session's rows beside it", among), ("a step of its own", alone)):
        same = int((together == rows).all(-1).sum())
        if same != count:
            raise ModelError(
                f"{runner.loaded.name} cannot be served bit for bit: {count - same} of {count} rows differ with {name}",
                hint="serve it without --exact, or try another --bucket",
            )


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
