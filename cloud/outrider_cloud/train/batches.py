"""Which examples are trained on together, and in which order: a pure function of (examples, seed)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import torch
from torch import Tensor

from outrider_cloud.train.chat import Example


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


def collate(examples: Sequence[Example], context_share: float, seed: int = 0) -> Batch:
    """Pad with id 0. All of the assistant's tokens count, and a random `context_share` of the others.

    Counting one in ten gives the gradient of a weight of 0.1 on average, and saves nine tenths of the others' logits.
    """
    rng = np.random.default_rng(seed)
    longest = max(len(example.ids) for example in examples)
    ids = np.zeros((len(examples), longest), np.int64)
    weight = np.zeros((len(examples), longest), np.float32)
    for row, example in enumerate(examples):
        size = len(example.ids)
        ids[row, :size] = example.ids
        weight[row, 1:size] = example.learn[1:] | (rng.random(size - 1) < context_share)
    return Batch(torch.from_numpy(ids), torch.from_numpy(weight))


class Course:
    """An endless series of batches by step: pass after pass over examples that may differ from pass to pass."""

    def __init__(
        self, examples_of: Callable[[int], list[Example]], tokens_per_batch: int, context_share: float, seed: int
    ) -> None:
        self._examples_of = examples_of
        self._tokens_per_batch = tokens_per_batch
        self._context_share = context_share
        self._seed = seed
        self._epoch = -1
        self._first_step = 0
        self._examples: list[Example] = []
        self._plan: list[list[int]] = []

    def batch(self, step: int) -> Batch:
        """The batch of this step, the same whether one walks here or jumps here."""
        if step < self._first_step:
            self._epoch, self._first_step, self._plan = -1, 0, []
        while step >= self._first_step + len(self._plan):
            self._next_epoch()
        chosen = self._plan[step - self._first_step]
        return collate([self._examples[i] for i in chosen], self._context_share, seed=self._seed + step)

    def _next_epoch(self) -> None:
        self._first_step += len(self._plan)
        self._epoch += 1
        self._examples = self._examples_of(self._epoch)
        lengths = [len(example.ids) for example in self._examples]
        self._plan = plan(lengths, self._tokens_per_batch, self._seed + self._epoch)
        if not self._plan:
            raise ValueError("no examples to train on")
