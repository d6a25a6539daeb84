"""What a folder's model will ask of the kernels, before any of its weights is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from outrider_cloud.model import gate
from outrider_cloud.model.attention import ATTENTION
from outrider_cloud.model.probe import probe_layers

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.kernels.layout import LayerSpec
    from outrider_cloud.parallel.world import World


@dataclass(frozen=True)
class Outline:
    """A model without its weights.

    Attributes:
        layers: Attention of each layer of the whole model.
        vocabulary: Rows of the output layer.
    """

    layers: list[LayerSpec]
    vocabulary: int

    def kv_bytes(self, tokens: int, dtype: torch.dtype, world: World) -> int:
        """Memory that a rank takes for the keys and values of so many tokens."""
        values = 0
        for spec in self.layers:
            heads = len(world.own) * max(1, spec.kv_heads // world.shards)  # fewer heads than shards are copied
            values += heads * (spec.k_dim + spec.v_dim)
        return values * tokens * dtype.itemsize


def outline(folder: Path) -> Outline | None:
    """The outline of a folder; None where it cannot be told so early, and loading will tell."""
    try:
        config: Any = AutoConfig.from_pretrained(folder)
        if gate.refusals(config):
            return None
        build: Any = AutoModelForCausalLM.from_config
        with torch.device("meta"):
            model = build(config, attn_implementation=ATTENTION).eval()
            layers = probe_layers(model)
    except Exception:  # noqa: BLE001 - some models do not compute without memory; a broken folder is told by loading it
        return None
    return Outline(layers, config.get_text_config().vocab_size)
