"""Batches out of shards, in an order that needs no memory: a permutation that is computed, cut into windows.

Pass after pass, each example once: pass e visits example (a_e i + b_e) mod n for i = 0, 1, ..., a_e coprime to n.
Within a window of consecutive i the examples are sorted by length and cut into batches, so padding is little and memory
is a window's.
"""

from collections.abc import Iterator
from math import gcd
from random import Random

import numpy as np
import torch

from outrider_cloud.train.texts.batches import Batch, plan
from outrider_cloud.train.texts.shards import Shard

_WINDOW_BATCHES = 40


class ShardCourse:
    """An endless series of batches by step, a pure function of (shard, tokens per batch, seed)."""

    def __init__(self, shard: Shard, tokens_per_batch: int, seed: int) -> None:
        if not len(shard):
            raise ValueError("no examples to train on")
        self._shard = shard
        self._tokens_per_batch = tokens_per_batch
        self._seed = seed
        mean = max(1, shard.meta.tokens // len(shard))
        self._stride = max(1, _WINDOW_BATCHES * tokens_per_batch // mean)
        self._restart()

    @property
    def mean_length(self) -> float:
        """Tokens of an example."""
        return self._shard.meta.tokens / len(self._shard)

    def _restart(self) -> None:
        self._first_step = 0
        self._plan: list[list[int]] = []
        self._windows = self._all_windows()

    def batch(self, step: int) -> Batch:
        """The batch of this step, the same whether one walks here or jumps here."""
        if step < self._first_step:
            self._restart()
        while step >= self._first_step + len(self._plan):
            self._first_step += len(self._plan)
            self._plan = next(self._windows)
        return self.collate(self._plan[step - self._first_step])

    def _all_windows(self) -> Iterator[list[list[int]]]:
        passes, size = 0, len(self._shard)
        while True:
            rng = Random(f"{self._seed}/{passes}")  # noqa: S311 - an order, not a secret
            factor, offset = _coprime(rng, size), rng.randrange(size)
            for start in range(0, size, self._stride):
                window = [(factor * i + offset) % size for i in range(start, min(size, start + self._stride))]
                spans = [self._shard.span(index) for index in window]
                lengths = [last - first for first, last in spans]
                batches = plan(lengths, self._tokens_per_batch, rng.getrandbits(32))
                yield [[window[i] for i in batch] for batch in batches]
            passes += 1

    def collate(self, chosen: list[int]) -> Batch:
        """These examples as one batch, padded with id 0."""
        shard, spans = self._shard, [self._shard.span(index) for index in chosen]
        longest = max(last - first for first, last in spans)
        ids = np.zeros((len(chosen), longest), np.int64)
        weight = np.zeros((len(chosen), longest), np.float32)
        for row, (first, last) in enumerate(spans):
            ids[row, : last - first] = shard.ids[first:last]
            weight[row, : last - first] = shard.learn[first:last]
        batch = Batch(torch.from_numpy(ids), torch.from_numpy(weight))
        if shard.top_ids is None or shard.top_logs is None:
            return batch
        learned = [slice(*shard.learned_span(index)) for index in chosen]
        top_ids = np.concatenate([shard.top_ids[part] for part in learned]).astype(np.int64)
        top_logs = np.concatenate([shard.top_logs[part] for part in learned]).astype(np.float32)
        return Batch(batch.ids, batch.weight, torch.from_numpy(top_ids), torch.from_numpy(top_logs))


def _coprime(rng: Random, size: int) -> int:
    while True:
        factor = rng.randrange(1, size + 1)
        if gcd(factor, size) == 1:
            return factor
