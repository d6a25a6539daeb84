"""One implementation of each kernel for a device. The engine takes a platform and asks no further."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outrider_cloud.kernels.attention import ExactAttention, GroupedAttention, PagedAttention
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.sampling import CpuSampler, Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.kernels.layout import LayerSpec


@dataclass(frozen=True)
class Platform:
    """The kernels of one device.

    Attributes:
        name: For logs and `Describe`.
        device: Where the model lives.
        attention: Paged tree attention.
        sampler: The sampling rule.
    """

    name: str
    device: torch.device
    attention: PagedAttention
    sampler: Sampler

    def kv_pool(self, layers: Sequence[LayerSpec], slots: int, dtype: torch.dtype) -> KvPool:
        """KV memory of this platform's layout."""
        return KvPool(layers, slots, dtype)


def cpu_platform(*, exact: bool) -> Platform:
    """The torch references on the CPU; with `exact`, those whose rows do not depend on their neighbours."""
    attention: PagedAttention = ExactAttention() if exact else GroupedAttention()
    return Platform("cpu", torch.device("cpu"), attention, CpuSampler())
