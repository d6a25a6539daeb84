"""KV memory of the CPU platform, and the two kernels that write it: store new rows, move a committed branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.kernels.layout import LayerSpec


class KvPool:
    """Keys and values of all layers, one slot a token.

    Head-major ([kv_heads, slots, dim] per layer), so that gathering slots yields batches that a CPU's matrix product
    takes without another copy.

    Args:
        layers: Attention of each layer.
        slots: Token slots; a block is a run of consecutive slots.
        dtype: Of the stored keys and values.
    """

    def __init__(self, layers: Sequence[LayerSpec], slots: int, dtype: torch.dtype) -> None:
        self.slots = slots
        self.keys = [torch.zeros(s.kv_heads, slots, s.k_dim, dtype=dtype) for s in layers]
        self.values = [torch.zeros(s.kv_heads, slots, s.v_dim, dtype=dtype) for s in layers]

    def store(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write new rows.

        Args:
            layer: Index of the layer.
            slots: [rows] int64.
            key: [kv_heads, at least rows, k_dim]; rows beyond `slots` are padding.
            value: [kv_heads, at least rows, v_dim].
        """
        rows = len(slots)
        self.keys[layer].index_copy_(1, slots, key[:, :rows].to(self.keys[layer].dtype))
        self.values[layer].index_copy_(1, slots, value[:, :rows].to(self.values[layer].dtype))

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy tokens between slots in every layer; the two may overlap."""
        src, dst = torch.tensor(source), torch.tensor(target)
        for pool in (*self.keys, *self.values):
            pool[:, dst] = pool[:, src]


def slot_bytes(layers: Sequence[LayerSpec], dtype: torch.dtype) -> int:
    """Bytes that one token takes over all layers."""
    return sum(s.kv_heads * (s.k_dim + s.v_dim) for s in layers) * dtype.itemsize
