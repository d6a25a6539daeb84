"""The attention function that Hugging Face models call in place of their own.

Contract with transformers (4.57 to 5.x): registered in `AttentionInterface` and *not* in `AttentionMaskInterface`, so
no mask is made; `use_cache=False`, so keys and values are those of the new rows, already rotated; the step's metadata
travels as one extra keyword.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import AttentionInterface

from outrider_cloud.kernels.layout import LayerSpec
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from outrider_cloud.kernels.attention import AttentionPlan
    from outrider_cloud.kernels.kv import KvPool

# Not "flash", "paged|" or "/": transformers gives those names a meaning of their own.
ATTENTION = "outrider_tree"
PROBE = "outrider_probe"

# Keywords that models pass and that do not change the result here.
_HARMLESS = {
    "attention_mask", "cache_position", "dropout", "is_causal", "layer_idx", "logits_to_keep", "output_attentions",
    "output_hidden_states", "output_router_logits", "position_bias", "position_embeddings", "position_ids",
    "return_dict", "training", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class StepContext:
    """What every layer of a step needs.

    Attributes:
        kv: The KV pool.
        slots: [rows] int64, where the rows' keys and values go; padding rows have none.
        plan: The attention plan.
        layers: Per layer index.
    """

    kv: KvPool
    slots: torch.Tensor
    plan: AttentionPlan
    layers: Sequence[LayerSpec]


class ShapeRecorder:
    """Collects each layer's `LayerSpec` during the shape probe."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerSpec] = {}
        self.calls = 0


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, q_heads, rows, k_dim]
    key: torch.Tensor,  # [1, kv_heads, rows, k_dim]
    value: torch.Tensor,  # [1, kv_heads, rows, v_dim]
    attention_mask: torch.Tensor | None,
    outrider: StepContext | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Store the rows' keys and values, then attend: [1, rows, q_heads, v_dim]."""
    if outrider is None or attention_mask is not None:
        raise ModelError("the model did not pass the step to its attention, or made a mask of its own")
    layer: int = module.layer_idx  # type: ignore[assignment]
    outrider.kv.store(layer, outrider.slots, key[0], value[0])
    out = outrider.plan.attend(query[0], outrider.kv, layer, outrider.layers[layer], s_aux)
    return out[None], None


def record_shape(  # noqa: PLR0913, PLR0917 - transformers fixes this signature
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    outrider: ShapeRecorder | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Record the layer's shape and return zeros.

    Raises:
        ModelError: if the model hands its attention something that would change the result and that we do not know.
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None:
        what = ", ".join(unknown) or "a mask of its own"
        raise ModelError(f"{type(module).__name__} hands its attention {what}, which this engine does not know")
    if outrider is None:
        raise ModelError(f"{type(module).__name__} drops extra keywords on the way to its attention")
    scale = scaling if scaling is not None else float(query.shape[3] ** -0.5)
    index: int = module.layer_idx  # type: ignore[assignment]
    outrider.calls += 1
    outrider.layers[index] = LayerSpec(
        query.shape[1], key.shape[1], key.shape[3], value.shape[3], scale, sliding_window, softcap, s_aux is not None
    )
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3]), None


AttentionInterface.register(ATTENTION, tree_attention)
AttentionInterface.register(PROBE, record_shape)
