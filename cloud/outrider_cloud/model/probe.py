"""The shape probe: one forward of one token with an attention function that only records.

Reading shapes off the running model instead of its configuration is right for fused projections, per-layer heads,
latent attention and tensor parallelism alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outrider_cloud.model.attention import PROBE, ShapeRecorder
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from outrider_cloud.kernels.layout import LayerSpec


@torch.inference_mode()
def probe_layers(model: PreTrainedModel) -> list[LayerSpec]:
    """Each layer's attention, in order.

    Raises:
        ModelError: unless every layer called the attention function exactly once.
    """
    before = model.config._attn_implementation  # noqa: SLF001 - transformers has no public getter
    recorder = ShapeRecorder()
    one = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    model.set_attn_implementation(PROBE)
    try:
        model(input_ids=one, position_ids=one, use_cache=False, logits_to_keep=one[0], outrider=recorder)
    finally:
        model.set_attn_implementation(before)
    layers = recorder.layers
    expected = model.config.get_text_config().num_hidden_layers
    if recorder.calls != expected or sorted(layers) != list(range(expected)):
        raise ModelError(
            f"{recorder.calls} attention calls in layers {sorted(layers)}, expected one in each of {expected}"
        )
    return [layers[i] for i in range(expected)]
