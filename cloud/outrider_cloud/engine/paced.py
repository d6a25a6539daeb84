"""A runner that takes its time, as one of a larger model than the one at hand would. For benchmarks only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outrider_cloud.engine.runner import ModelRunner
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from outrider_cloud.engine.batch import Batch
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.runner import Decision, Flight
    from outrider_cloud.kernels.platform import Platform
    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.sampling.shape_torch import Shaping


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

    def launch(self, batch: Batch) -> Flight:
        """As `ModelRunner.launch`, but not done sooner. As beside a GPU, the host is free meanwhile."""
        return _Paced(self, super().launch(batch), time.perf_counter(), self._step_s)


class _Paced:
    """A step whose result is there at once and told when its time is over; that time counts as the model's."""

    def __init__(self, runner: ModelRunner, inner: Flight, started: float, step_s: float) -> None:
        self._runner, self._inner = runner, inner
        self._started, self._step_s = started, step_s

    def choose(self, shaping: Shaping | None) -> None:
        """Compute."""
        self._inner.choose(shaping)
        before = self._runner.forward_s
        self._decision = self._inner.wait()
        self._runner.forward_s = before + max(self._step_s, self._runner.forward_s - before)

    def busy(self) -> bool:
        """As `Flight.busy`."""
        return time.perf_counter() < self._started + self._step_s

    def wait(self) -> Decision:
        """As `Flight.wait`."""
        time.sleep(max(0.0, self._started + self._step_s - time.perf_counter()))
        return self._decision
