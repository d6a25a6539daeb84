"""Runs the model over a batch: the only place that touches tensors of a step besides the kernels.

A step is launched, told what changes its logits, and waited for. On a GPU the host is free between launch and wait; on
a CPU the forward is the processor's own work, and happens in the wait.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from outrider_cloud.engine.peers import Alone, Peers
from outrider_cloud.kernels.sampling import log_probabilities
from outrider_cloud.model.attention import StepContext
from outrider_shared.sampling.shape_torch import shape

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_cloud.engine.batch import Batch
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.kernels.platform import Platform
    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.errors import OutriderError
    from outrider_shared.logprobs import TokenLogprobs
    from outrider_shared.sampling.shape_torch import Shaping


@dataclass(frozen=True)
class Decision:
    """What a step found out.

    Attributes:
        chosen: Per sampled row, the token.
        bad: Sampled rows with a logit that is no number.
        logprobs: Of what given rows of `Batch.reports` chose, under the logits as the model gave them, each with so
            many of the likeliest tokens; may be called until the next step.
    """

    chosen: list[int]
    bad: set[int]
    logprobs: Callable[[Sequence[int], int], list[TokenLogprobs]]


class Flight(Protocol):
    """A step that was launched."""

    def choose(self, shaping: Shaping | None) -> None:
        """Say what changes the logits before the choice: penalties, bias, masks. To be called once, before `wait`."""

    def busy(self) -> bool:
        """Whether a device still works at it and leaves the host free."""

    def wait(self) -> Decision:
        """What it found out; waits for it."""


class ModelRunner:
    """A loaded model with its KV memory.

    Args:
        loaded: The model, checked.
        platform: Kernels of the device that it lives on.
        config: Sizes; in exact mode every call is padded to one of `config.buckets`.

    Attributes:
        buckets: Row counts that steps are padded to, ascending; empty for natural shapes.
        kv: Keys and values of all blocks.
        forward_s: Seconds spent inside the model so far, attention included.
        peers: Other processes that compute the same steps.
    """

    def __init__(self, loaded: LoadedModel, platform: Platform, config: EngineConfig) -> None:
        self.loaded = loaded
        self.platform = platform
        self.buckets = config.buckets if config.exact else ()
        self.forward_s = 0.0
        self.peers: Peers = Alone()
        self.kv = platform.kv_pool(loaded.layers, config.blocks * config.block_size, loaded.dtype)

    @torch.inference_mode()
    def run(self, batch: Batch, bucket: int = 0) -> torch.Tensor:
        """Store the rows' KV and compute logits: [sampled, vocab] in the model's dtype.

        Args:
            batch: At least one row.
            bucket: Pad to this many rows; 0 takes the smallest of `buckets` that fits, if there are any.
        """
        self.peers.step(batch, bucket, self.buckets)
        rows, sampled = len(batch.tokens), len(batch.sampled)
        padding = [0] * (self._padded(rows, bucket) - rows)
        keep = batch.sampled + [0] * (self._padded(sampled, bucket) - sampled)
        context = StepContext(
            self.kv,
            torch.from_numpy(np.concatenate([s.slots for s in batch.segments])),
            self.platform.attention.plan(batch.segments, rows + len(padding)),
            self.loaded.layers,
        )
        tokens, positions = torch.tensor([batch.tokens + padding]), torch.tensor([batch.positions + padding])
        # One row at least: with none, transformers would read an empty slice as "all".
        wanted = torch.tensor(keep or [0])
        started = time.perf_counter()
        out = self.loaded.model(
            input_ids=tokens, position_ids=positions, use_cache=False, logits_to_keep=wanted, outrider=context
        )
        self.forward_s += time.perf_counter() - started
        logits: torch.Tensor = out.logits[0][:sampled]
        return logits

    def launch(self, batch: Batch) -> Flight:
        """Begin to compute a batch of at least one row, and to choose the token of every sampled row."""
        return _Inline(self, batch)

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy tokens between KV slots in every layer; see `KvPool.move`."""
        self.peers.move(source, target)
        self.kv.move(source, target)

    def fault(self, error: Exception) -> OutriderError:
        """What the sessions of a step are told that failed with an error."""
        return self.peers.fault(error)

    def _padded(self, rows: int, bucket: int) -> int:
        return bucket or next((b for b in self.buckets if b >= rows), rows)


class _Inline:
    """A step on the host's own processor: computed when it is waited for."""

    def __init__(self, runner: ModelRunner, batch: Batch) -> None:
        self._runner, self._batch = runner, batch
        self._shaping: Shaping | None = None

    def choose(self, shaping: Shaping | None) -> None:
        """As `Flight.choose`."""
        self._shaping = shaping

    def busy(self) -> bool:
        """Never: there is no other device."""
        return False

    @torch.inference_mode()
    def wait(self) -> Decision:
        """As `Flight.wait`."""
        batch, logits = self._batch, self._runner.run(self._batch)
        shaped = logits if self._shaping is None else shape(logits, self._shaping)
        chosen = self._runner.platform.sampler.choose(shaped, batch.choosing, batch.params)

        def logprobs(rows: Sequence[int], top: int) -> list[TokenLogprobs]:
            return log_probabilities(logits[list(rows)], [chosen[row] for row in rows], top)

        return Decision(chosen, _rows_with_nan(logits), logprobs)


def _rows_with_nan(logits: torch.Tensor) -> set[int]:
    rows = logits.isnan().any(-1)
    return set(rows.nonzero().flatten().tolist()) if bool(rows.any()) else set()
