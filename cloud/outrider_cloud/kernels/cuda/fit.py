"""Whether there are kernels for a model: asked before its weights are read, and not at its first request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_cloud.kernels.cuda.sampling import share_of
from outrider_cloud.kernels.cuda.source import RANKS, THREADS, attention_bytes, attention_variant
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from outrider_cloud.kernels.layout import LayerSpec

_CPU = "serve this model with --device cpu"


def check_fit(layers: Sequence[LayerSpec], vocabulary: int, dtype: torch.dtype, shared_bytes: int) -> None:
    """Refuse a model that some kernel cannot take on a card.

    Args:
        layers: Attention of each layer.
        vocabulary: Logits of a row.
        dtype: Of weights, keys and values.
        shared_bytes: Most shared memory of a block there.

    Raises:
        ModelError: naming the size or type that there is no kernel for.
    """
    kv_shape(layers)
    for spec in layers:
        attention_variant(spec.k_dim, dtype)
        if (needed := attention_bytes(spec.k_dim)) > shared_bytes:
            raise ModelError(
                f"attention over heads of {spec.k_dim} needs {needed} bytes of shared memory a block, here it gets "
                f"{shared_bytes}",
                hint=_CPU,
            )
    for ranks in RANKS:
        share_of(vocabulary, ranks, THREADS, shared_bytes)


def kv_shape(layers: Sequence[LayerSpec]) -> tuple[int, int]:
    """KV heads and their size, the same in all layers.

    Raises:
        ModelError: if layers differ, or keys differ from values.
    """
    shapes = sorted({(s.kv_heads, s.k_dim, s.v_dim) for s in layers})
    heads, dim, v_dim = shapes[0]
    if len(shapes) != 1:
        raise ModelError(
            f"the layers' KV heads differ ({shapes}: heads, key size, value size)",
            hint=f"the GPU kernels need one size for all; {_CPU}",
        )
    if dim != v_dim:
        raise ModelError(
            f"its key heads have size {dim}, its value heads {v_dim}", hint=f"the GPU kernels need one size; {_CPU}"
        )
    return heads, dim
