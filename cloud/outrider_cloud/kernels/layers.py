"""What lies between a layer's matrix products, in torch: norms with the residual, rotary embedding, activation.

The definition of the fused GPU kernels, with the roundings of the Hugging Face modules; runs on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch.nn.functional import silu

if TYPE_CHECKING:
    from outrider_cloud.kernels.kv import KvPool


@dataclass(frozen=True)
class Rotation:
    """How queries and keys of a layer are prepared.

    Attributes:
        cos, sin: [rows, rotary] float32, both halves; heads wider than `rotary` keep their rest.
        q_norm, k_norm: [dim] weights of a norm over each head before it is rotated, or None.
        epsilon: Of that norm.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    q_norm: torch.Tensor | None = None
    k_norm: torch.Tensor | None = None
    epsilon: float = 0.0


class LayerKernels(Protocol):
    """The fused pieces of a decoder layer."""

    def rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """norm(residual + x) * weight: [rows, width]; the sum replaces the residual's values. None: norm x itself."""

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up: [rows, width] of [rows, 2 * width], gate first."""

    def rope_store(
        self, qkv: torch.Tensor, rotation: Rotation, slots: torch.Tensor, kv: KvPool, layer: int, q_heads: int
    ) -> torch.Tensor:
        """Queries [rows, q_heads, dim], normed and rotated; keys likewise and values go to their slots.

        Args:
            qkv: [rows, (q_heads + 2 * kv_heads) * dim], queries first.
            rotation: How.
            slots: [rows] or fewer where the last rows are padding; -1 is padding, too.
            kv: Takes keys and values.
            layer: Index of the layer.
            q_heads: Query heads.
        """


class TorchLayers:
    """The reference."""

    def rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """See `LayerKernels.rms_norm`."""
        if residual is not None:
            x = residual.add_(x)
        return _norm(x, weight, epsilon)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """See `LayerKernels.silu_mul`."""
        gate, up = gate_up.chunk(2, -1)
        return silu(gate) * up

    def rope_store(
        self, qkv: torch.Tensor, rotation: Rotation, slots: torch.Tensor, kv: KvPool, layer: int, q_heads: int
    ) -> torch.Tensor:
        """See `LayerKernels.rope_store`."""
        rows, kv_heads = qkv.shape[0], kv.keys[layer].shape[0]
        heads = qkv.view(rows, q_heads + 2 * kv_heads, -1)
        query, key, value = torch.split(heads, [q_heads, kv_heads, kv_heads], 1)
        if rotation.q_norm is not None and rotation.k_norm is not None:
            query = _norm(query, rotation.q_norm, rotation.epsilon)
            key = _norm(key, rotation.k_norm, rotation.epsilon)
        key = _rotate(key, rotation)
        kept = slots[slots >= 0]
        kv.store(layer, kept.long(), key.transpose(0, 1), value.transpose(0, 1))
        return _rotate(query, rotation)


def _norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _rotate(heads: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """[rows, heads, dim] in its dtype, computed in float32."""
    rotary = rotation.cos.shape[1]
    turned, rest = heads[..., :rotary].float(), heads[..., rotary:]
    low, high = turned.chunk(2, -1)
    turned = turned * rotation.cos[:, None] + torch.cat((-high, low), -1) * rotation.sin[:, None]
    return torch.cat((turned.to(heads.dtype), rest), -1)
