"""The GPU's set of kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_cloud.kernels.cuda.attention import CudaAttention
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.cuda.sampling import CudaSampler
from outrider_cloud.kernels.platform import Platform

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from outrider_cloud.kernels.cuda.launch import Launcher
    from outrider_cloud.kernels.kv import KvPool
    from outrider_cloud.kernels.layout import LayerSpec


@dataclass(frozen=True)
class CudaPlatform(Platform):
    """The kernels of one card, or of the host build.

    Attributes:
        launcher: Starts them.
        layers: What lies between matrix products.
        sampler: The sampling rule.
        page_bits: Tokens of a page of KV memory, as a power of two.
    """

    launcher: Launcher
    layers: CudaLayers
    sampler: CudaSampler
    page_bits: int

    def kv_pool(self, layers: Sequence[LayerSpec], slots: int, dtype: torch.dtype) -> KvPool:
        """KV memory of this platform's layout."""
        return CudaKvPool(self.launcher, layers, slots, dtype, self.page_bits)


def cuda_platform(launcher: Launcher, page: int = 16, sampler: CudaSampler | None = None) -> CudaPlatform:
    """The kernels on a launcher's device, with pages of `page` tokens (a power of two)."""
    bits = page.bit_length() - 1
    return CudaPlatform(
        name=launcher.device.type,
        device=launcher.device,
        attention=CudaAttention(launcher, bits),
        sampler=sampler or CudaSampler(launcher),
        launcher=launcher,
        layers=CudaLayers(launcher),
        page_bits=bits,
    )
