"""What lies between a layer's matrix products, on the GPU: the wrapper of `layers.cu`.

The reference is `outrider_cloud.kernels.layers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.source import layers_variant

if TYPE_CHECKING:
    from outrider_cloud.kernels.cuda.launch import Launcher
    from outrider_cloud.kernels.kv import KvPool
    from outrider_cloud.kernels.layers import Rotation

_NORM_THREADS = 256
_ACTIVATION_THREADS = 256


class CudaLayers:
    """Fused kernels over rows; see `outrider_cloud.kernels.layers.LayerKernels`.

    Args:
        launcher: Of the device.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def rms_norm(
        self, x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, epsilon: float
    ) -> torch.Tensor:
        """Add to the residual in place, then norm: [rows, width]."""
        rows, width = x.shape
        out = torch.empty_like(x)
        self._launcher.launch(layers_variant(x.dtype), "rms_norm", (rows, 1, 1), _NORM_THREADS, (
            x, residual, weight, width, float(epsilon), out,
        ))  # fmt: skip
        return out

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of [rows, 2 * width]."""
        rows, width = gate_up.shape[0], gate_up.shape[1] // 2
        out = gate_up.new_empty(rows, width)
        blocks = -(-rows * width // (2 * _ACTIVATION_THREADS))
        self._launcher.launch(layers_variant(out.dtype), "silu_mul", (blocks, 1, 1), _ACTIVATION_THREADS, (
            gate_up, rows, width, out,
        ))  # fmt: skip
        return out

    def rope_store(
        self, qkv: torch.Tensor, rotation: Rotation, slots: torch.Tensor, kv: KvPool, layer: int, q_heads: int
    ) -> torch.Tensor:
        """Norm, rotate, write keys and values: queries [rows, q_heads, dim]."""
        assert isinstance(kv, CudaKvPool)
        rows, dim = qkv.shape[0], kv.dim
        keys, values = kv.planes(layer)
        query = qkv.new_empty(rows, q_heads, dim)
        grid = (rows, q_heads + 2 * kv.heads, 1)
        self._launcher.launch(layers_variant(qkv.dtype), "rope_store", grid, 32, (
            qkv, rotation.cos, rotation.sin, rotation.cos.shape[1], rotation.q_norm, rotation.k_norm,
            float(rotation.epsilon), slots, q_heads, kv.heads, dim, kv.page_bits, query, keys, values,
        ), 4 * dim)  # fmt: skip
        return query
