"""Puts an engine together from a model folder and a configuration; what `cloud serve`, `generate` and benches share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from outrider_cloud.engine.engine import Engine
from outrider_cloud.engine.exactness import agreeing_buckets
from outrider_cloud.engine.paced import PacedRunner
from outrider_cloud.engine.runner import ModelRunner
from outrider_cloud.kernels.platform import cpu_platform
from outrider_cloud.model.loading import load_model

if TYPE_CHECKING:
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.model.loading import LoadedModel


def build_engine(
    model: str | Path | LoadedModel, config: EngineConfig, *, threads: int = 0, pace_step_s: float = 0.0
) -> Engine:
    """An engine on the CPU platform.

    Args:
        model: A Hugging Face folder, `bundled`, or a model that is loaded already.
        config: Sizes and policies.
        threads: Threads of a step; 0 leaves torch's own choice.
        pace_step_s: Least duration of a step, to stand in for a larger model in benchmarks; 0 is the model's own.

    Raises:
        ConfigError: if the folder is no model.
        ModelError: if the model cannot be served, or with `config.exact` not bit for bit.
    """
    if threads:
        torch.set_num_threads(threads)
    loaded = load_model(model) if isinstance(model, (str, Path)) else model
    platform = cpu_platform(exact=config.exact)
    if pace_step_s:
        runner: ModelRunner = PacedRunner(loaded, platform, config, pace_step_s)
    else:
        runner = ModelRunner(loaded, platform, config)
    if config.exact:
        runner.buckets = agreeing_buckets(runner)
    return Engine(runner, config)
