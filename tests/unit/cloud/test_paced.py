"""The paced engine: slower, and nothing else."""

from __future__ import annotations

import time

import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_shared.errors import ConfigError
from outrider_shared.sampling import SamplingParams

CONFIG = EngineConfig(kv_tokens=1024)


def test_every_step_takes_its_time_and_the_tokens_stay(tiny):
    """Eight tokens at 10 ms a step take 80 ms at least, and are those of the engine's own pace."""
    own = generate(build_engine(tiny, CONFIG), [1, 2, 3], SamplingParams(), 8, ignore_eos=True)
    engine = build_engine(tiny, CONFIG, pace_step_s=0.01)
    started = time.perf_counter()
    paced = generate(engine, [1, 2, 3], SamplingParams(), 8, ignore_eos=True)
    assert time.perf_counter() - started >= 0.08
    assert paced.tokens == own.tokens


@pytest.mark.parametrize("step_s", [-0.01, 61.0, float("nan")])
def test_paces_that_make_no_sense_are_refused(tiny, step_s):
    """The message has the value in milliseconds."""
    with pytest.raises(ConfigError, match="paced step"):
        build_engine(tiny, CONFIG, pace_step_s=step_s)
