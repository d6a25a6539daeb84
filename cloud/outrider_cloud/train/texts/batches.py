"""Which examples are trained on together, and in which order: a pure function of (examples, seed)."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Examples padded at the end to one length (a causal model needs no mask for that)."""

    ids: Tensor  # [rows, length] int64
    weight: (
        Tensor  # [rows, length] float32: 1 where the prediction OF this token counts, else 0 (padding, first tokens)
    )

    top_ids: Tensor | None = None  # [chosen, k] int64: the target's likeliest tokens where `weight` is not 0, by row
    top_logs: Tensor | None = None  # [chosen, k] float32: their log-probabilities

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        return self.ids.numel()

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if self.ids.device == device:
            return self
        parts = (self.ids, self.weight, self.top_ids, self.top_logs)
        return Batch(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


def plan(lengths: Sequence[int], tokens_per_batch: int, seed: int, window: int = 40) -> list[list[int]]:
    """Cut a shuffled order into batches of similar length, at most `tokens_per_batch` tokens each, padding included.

    Lengths are sorted only inside windows of about `window` batches, so that each batch stays a random draw.
    """
    rng = Random(seed)  # noqa: S311 - an order, not a secret
    order = list(range(len(lengths)))
    rng.shuffle(order)
    mean = max(1, sum(lengths) // max(1, len(lengths)))
    stride = max(1, window * tokens_per_batch // mean)
    batches: list[list[int]] = []
    for start in range(0, len(order), stride):
        batches += _cut(sorted(order[start : start + stride], key=lambda i: lengths[i]), lengths, tokens_per_batch)
    rng.shuffle(batches)
    return batches


def _cut(order: list[int], lengths: Sequence[int], tokens_per_batch: int) -> list[list[int]]:
    batches: list[list[int]] = []
    current: list[int] = []
    for index in order:
        if current and (len(current) + 1) * lengths[index] > tokens_per_batch:
            batches.append(current)
            current = []
        current.append(index)
    return [*batches, current] if current else batches
