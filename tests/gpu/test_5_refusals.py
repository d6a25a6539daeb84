"""What does not fit onto the card ends with a sentence that says what to do, and leaves the card usable."""

from __future__ import annotations

import pytest
import torch

from outrider_cloud.bench.shapes import random_model
from outrider_cloud.build import build_runner
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.layout import LayerSpec
from outrider_cloud.model.loading import bundled_model
from outrider_shared.errors import ConfigError, ModelError


def test_keys_and_values_that_do_not_fit(card):
    spec = LayerSpec(32, 8, 128, 128, 1.0, None, None, sinks=False)
    with pytest.raises(ConfigError, match=r"KV for 16777216 tokens needs 2048\.0 GiB") as caught:
        CudaKvPool(card.launcher, [spec] * 32, 1 << 24, torch.bfloat16, 4)
    assert "--kv-tokens" in caught.value.hint
    assert torch.ones(1, device=card.device).item() == 1.0


def test_a_model_whose_head_size_has_no_kernel(card):
    """The bundled target is such a model: the sentence names size and way out, and nothing is on the card yet."""
    before = torch.cuda.memory_allocated(card.device)
    with pytest.raises(ModelError, match="head size") as caught:
        build_runner(bundled_model(), EngineConfig(kv_tokens=512), device="cuda")
    assert "--device cpu" in caught.value.hint
    assert torch.cuda.memory_allocated(card.device) == before


def test_steps_whose_buffers_do_not_fit(card):
    """Weights and KV fit, the partial results of long rows do not: the sentence names the budget."""
    loaded = random_model(card.models[0], torch.bfloat16, card.device, 1)
    hog = torch.empty(torch.cuda.mem_get_info(card.device)[0] - (3 << 30), dtype=torch.uint8, device=card.device)
    with pytest.raises(ConfigError, match="do not fit onto"):
        build_runner(loaded, EngineConfig(kv_tokens=1 << 18, row_budget=1024), device="cuda")
    del hog
    torch.cuda.empty_cache()


def test_the_device_may_be_given_without_a_number(card):
    """`cuda` is the first card."""
    loaded = random_model(card.models[0], torch.bfloat16, card.device, 1)
    assert build_runner(loaded, EngineConfig(kv_tokens=512), device="cuda").platform.device == card.device
