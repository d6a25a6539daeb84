"""KV memory of a GPU and the kernels that write it: the wrapper of `kv.cu`; its reference is `kernels.kv`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from outrider_cloud.kernels.cuda.fit import kv_shape
from outrider_cloud.kernels.cuda.launch import Long
from outrider_cloud.kernels.cuda.source import kv_variant
from outrider_cloud.kernels.kv import KvPool
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.kernels.cuda.launch import Launcher
    from outrider_cloud.kernels.layout import LayerSpec


class CudaKvPool(KvPool):
    """Keys and values of all layers in one tensor: [layers, 2, pages, kv_heads, page, dim].

    Args:
        launcher: Of the device.
        layers: Attention of each layer; heads and their size must be the same in all.
        slots: Token slots, a multiple of a page.
        dtype: bfloat16 or float16.
        page_bits: Tokens of a page, as a power of two.

    Raises:
        ModelError: if layers differ, or keys differ from values in size.
        ConfigError: if the card has not enough memory left.
    """

    def __init__(
        self, launcher: Launcher, layers: Sequence[LayerSpec], slots: int, dtype: torch.dtype, page_bits: int
    ) -> None:
        heads, dim = kv_shape(layers)
        self._variant = kv_variant(dtype)
        self._launcher = launcher
        self.page_bits, self.slots, self.heads, self.dim = page_bits, slots, heads, dim
        shape = (len(layers), 2, slots >> page_bits, heads, 1 << page_bits, dim)
        try:
            self.pool = torch.zeros(shape, dtype=dtype, device=launcher.device)
        except torch.OutOfMemoryError as error:
            needed = 2 * len(layers) * slots * heads * dim * dtype.itemsize
            raise ConfigError(
                f"KV for {slots} tokens needs {needed / 2**30:.1f} GiB, more than the card has left",
                hint="give a smaller --kv-tokens, or more cards with --tensor-parallel",
            ) from error

    def planes(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer: [pages, kv_heads, page, dim] each."""
        return self.pool[layer, 0], self.pool[layer, 1]

    def store(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write new rows; see `KvPool.store`. Slots may be int32 on the device, -1 for padding."""
        if slots.dtype != torch.int32 or slots.device != self.pool.device:
            slots = slots.to(self.pool.device, torch.int32)
        keys, values = self.planes(layer)
        self._launcher.launch(self._variant, "kv_store", (len(slots), self.heads, 1), 32, (
            _dense(key), key.stride(1), key.stride(0), _dense(value), value.stride(1), value.stride(0), slots,
            self.heads, self.dim, self.page_bits, keys, values,
        ))  # fmt: skip

    def move(self, source: Sequence[int], target: Sequence[int]) -> None:
        """Copy tokens between slots in every layer, in order; no target may lie where a later source does."""
        moves = torch.tensor([source, target], dtype=torch.int32).T.contiguous().to(self.pool.device)
        starts = torch.tensor([0, len(source)], dtype=torch.int32).to(self.pool.device)
        self.launch_moves(moves, starts, torch.ones(1, dtype=torch.int32).to(self.pool.device), 1)

    def launch_moves(self, moves: torch.Tensor, starts: torch.Tensor, groups: torch.Tensor, most: int) -> None:
        """Start the moves of several sessions.

        Args:
            moves: [moves, 2] int32 source and target slots.
            starts: [groups + 1] int32; a session's moves are done in order.
            groups: [1] int32, how many count.
            most: Groups that the grid is sized for.
        """
        layers, plane = self.pool.shape[0], self.pool[0, 0].numel()
        self._launcher.launch(self._variant, "kv_move", (layers * 2 * self.heads, most, 1), 32, (
            moves, starts, groups, self.heads, self.dim, self.page_bits, Long(plane), self.pool,
        ))  # fmt: skip


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.stride(-1) == 1, "a head's values must lie side by side"
    return tensor
