"""A runner that takes its time, as one of a larger model than the one at hand would. For benchmarks only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outrider_cloud.engine.runner import ModelRunner
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from outrider_cloud.engine.batch import Batch
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.kernels.platform import Platform
    from outrider_cloud.model.loading import LoadedModel


class PacedRunner(ModelRunner):
    """Every step takes at least `step_s`, however few its rows: what a memory-bound model on a GPU does.

    Args:
        loaded, platform, config: As `ModelRunner`.
        step_s: Least duration of a step; what the model leaves of it is slept away.
    """

    def __init__(self, loaded: LoadedModel, platform: Platform, config: EngineConfig, step_s: float) -> None:
        super().__init__(loaded, platform, config)
        if not 0.0 < step_s <= 60.0:
            raise ConfigError(f"a paced step of {step_s * 1e3:g} ms", hint="it must be above 0 and at most 60 s")
        self._step_s = step_s

    def run(self, batch: Batch, bucket: int = 0) -> torch.Tensor:
        """As `ModelRunner.run`, but not sooner; the sleep counts as time inside the model."""
        started = time.perf_counter()
        logits = super().run(batch, bucket)
        left = self._step_s - (time.perf_counter() - started)
        if left > 0:
            time.sleep(left)
            self.forward_s += left
        return logits
