"""What rank 0 tells the others of a step, as one array of integers: what they need to compute the same rows.

    [kind, length, bucket, buckets, moves, segments, rows, sampled]  int32, then in this order
    buckets    row counts that steps are padded to
    moves      source and target slot of each, done before the step
    segments   each: context, rows, runs; then first slot and length of each run of its slots; then its parents
    tokens, positions [rows], sampled rows

Slots come as runs, of which a block of KV memory makes one at most. Sampling parameters are not told: rank 0 chooses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outrider_cloud.engine.batch import Batch
from outrider_cloud.kernels.layout import Segment
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

STOP, STEP = 0, 1
HEADER = 8


@dataclass(frozen=True)
class Step:
    """One step, as the others see it.

    Attributes:
        batch: Rows; its choices are of no meaning.
        bucket: As `ModelRunner.run` was given it.
        buckets: Of the leading runner.
        sources, targets: KV slots to copy first.
    """

    batch: Batch
    bucket: int
    buckets: tuple[int, ...]
    sources: list[int]
    targets: list[int]


def stop_message() -> NDArray[np.int32]:
    """Tells the others to end."""
    return np.array([STOP, HEADER, 0, 0, 0, 0, 0, 0], np.int32)


def encode(step: Step) -> NDArray[np.int32]:
    """The array of a step."""
    batch = step.batch
    parts: list[NDArray[np.int64] | Sequence[int]] = [step.buckets]
    parts += zip(step.sources, step.targets, strict=True)
    for segment in batch.segments:
        runs = _runs(np.concatenate((segment.context, segment.slots)))
        parts += [[len(segment.context), len(segment.slots), len(runs)], runs.reshape(-1), segment.parents]
    parts += [batch.tokens, batch.positions, batch.sampled]
    body = np.concatenate([np.asarray(part, np.int32) for part in parts])
    sizes = (len(step.buckets), len(step.sources), len(batch.segments), len(batch.tokens), len(batch.sampled))
    return np.concatenate((np.array([STEP, HEADER + len(body), step.bucket, *sizes], np.int32), body))


def decode(message: NDArray[np.int32]) -> Step:
    """A step from its array."""
    bucket, buckets, moves, segments, rows, sampled = message[2:HEADER].tolist()
    at = HEADER

    def take(count: int) -> NDArray[np.int32]:
        nonlocal at
        at += count
        return message[at - count : at]

    sizes = tuple(take(buckets).tolist())
    pairs = take(2 * moves).reshape(-1, 2)
    laid = []
    for _ in range(segments):
        context, own, runs = take(3).tolist()
        slots = _slots(take(2 * runs).reshape(-1, 2))
        laid.append(Segment(slots[:context], slots[context:], take(own).tolist()))
    tokens, positions, chosen = take(rows).tolist(), take(rows).tolist(), take(sampled).tolist()
    batch = Batch(tokens, positions, laid, chosen, [0] * sampled, [SamplingParams()] * sampled)
    return Step(batch, bucket, sizes, pairs[:, 0].tolist(), pairs[:, 1].tolist())


def _runs(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """[runs, 2]: first slot and length."""
    starts = np.concatenate(([0], np.flatnonzero(np.diff(slots) != 1) + 1))
    lengths = np.diff(np.concatenate((starts, [len(slots)])))
    return np.stack((slots[starts], lengths), 1)


def _slots(runs: NDArray[np.int32]) -> NDArray[np.int64]:
    lengths = runs[:, 1].astype(np.int64)
    before = np.cumsum(lengths) - lengths
    slots: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(runs[:, 0] - before, lengths)
    return slots
