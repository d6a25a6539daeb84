"""Paged tree attention on the GPU: the wrapper of `attention.cu`; its reference is `kernels.attention`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.metadata import StepArrays, step_arrays
from outrider_cloud.kernels.cuda.source import SPLIT, attention_bytes, attention_variant
from outrider_shared.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.kernels.cuda.launch import Launcher
    from outrider_cloud.kernels.kv import KvPool
    from outrider_cloud.kernels.layout import LayerSpec, Segment

# Blocks per multiprocessor of the grid; each takes items of work until none is left.
_BLOCKS_PER_PROCESSOR = 4


class Workspace:
    """Partial results of all layers, one after the other; grows when asked for more, so fix it before a graph.

    Args:
        device: Of the tensors.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._values = torch.empty(0, device=device)
        self._sums = torch.empty(0, device=device)

    def reserve(self, entries: int, heads: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 memory for `entries` results of every head: values and sums."""
        if self._values.numel() < entries * heads * dim:
            self._values = torch.empty(entries * heads * dim, device=self._device)
        if self._sums.numel() < entries * heads * 2:
            self._sums = torch.empty(entries * heads * 2, device=self._device)
        return self._values, self._sums


@dataclass
class WindowTensors:
    """As `metadata.WindowWork`, on the device."""

    parts: torch.Tensor  # [rows]
    work: torch.Tensor  # [at least items, 2]
    work_count: torch.Tensor  # [1]
    entries: int  # of the workspace


@dataclass
class CudaPlan:
    """Metadata of one step on the device; see `metadata`."""

    launcher: Launcher
    workspace: Workspace
    positions: torch.Tensor
    slots: torch.Tensor
    forks: torch.Tensor
    ancestors: torch.Tensor  # [rows, width]
    tiles: torch.Tensor
    table: torch.Tensor
    windows: dict[int, WindowTensors]

    def attend(
        self, query: torch.Tensor, kv: KvPool, layer: int, spec: LayerSpec, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of all rows; see `outrider_cloud.kernels.attention.AttentionPlan`.

        Raises:
            ModelError: if there is no kernel for the layer's head size or type.
        """
        assert isinstance(kv, CudaKvPool)
        heads, rows, dim = query.shape
        variant, window = attention_variant(dim, query.dtype), spec.window or 0
        if spec.v_dim != dim:
            raise ModelError(
                f"value heads of {spec.v_dim} beside key heads of {dim}", hint="serve this model with --device cpu"
            )
        # The kernel reads 16 bytes at a time.
        if query.stride(2) != 1 or query.stride(0) % 8 or query.stride(1) % 8 or query.data_ptr() % 16:
            query = query.clone(memory_format=torch.contiguous_format)
        if sinks is not None:
            sinks = sinks.to(query.dtype).contiguous()
        work = self.windows[window]
        values, sums = self.workspace.reserve(work.entries, heads, dim)
        keys_of, values_of = kv.planes(layer)
        out = torch.empty(rows, heads, dim, dtype=query.dtype, device=query.device)
        grid = (self.launcher.processors * _BLOCKS_PER_PROCESSOR, 1, 1)
        self.launcher.launch(variant, "attention_split", grid, SPLIT, (
            query, query.stride(1), query.stride(0), keys_of, values_of, kv.page_bits, self.positions, self.forks,
            self.ancestors, self.ancestors.shape[1], self.tiles, self.table, work.work, work.work_count, work.parts,
            heads, spec.kv_heads, window, float(spec.scale), float(spec.softcap or 0.0), values, sums,
        ), attention_bytes(dim))  # fmt: skip
        self.launcher.launch(variant, "attention_combine", (rows, heads, 1), dim, (
            self.positions, work.parts, values, sums, sinks, heads, window, out,
        ))  # fmt: skip
        return out


class CudaAttention:
    """Makes plans with memory of their own; a captured step has fixed memory instead (`engine.cuda_runner`).

    Args:
        launcher: Of the device.
        page_bits: Tokens of a page, as a power of two.
        windows: Distinct sliding windows of the model's layers, 0 for full attention.
    """

    def __init__(self, launcher: Launcher, page_bits: int, windows: Sequence[int] = (0,)) -> None:
        self.launcher = launcher
        self.page_bits = page_bits
        self.windows = tuple(windows)
        self.workspace = Workspace(launcher.device)

    def plan(self, segments: Sequence[Segment], rows: int) -> CudaPlan:
        """Plan for segments that cover the first rows of a batch of `rows` rows."""
        arrays = step_arrays(segments, rows, self.page_bits, self.windows)
        return plan_of(arrays, self.launcher, self.workspace)


def plan_of(arrays: StepArrays, launcher: Launcher, workspace: Workspace) -> CudaPlan:
    """A plan from arrays, each copied to the device by itself."""

    def put(array: object) -> torch.Tensor:
        return torch.as_tensor(array, dtype=torch.int32).to(launcher.device)

    windows = {
        window: WindowTensors(put(work.parts), put(work.work), put([len(work.work)]), work.entries)
        for window, work in arrays.windows.items()
    }
    return CudaPlan(
        launcher, workspace, put(arrays.positions), put(arrays.slots), put(arrays.forks), put(arrays.ancestors),
        put(arrays.tiles), put(arrays.table), windows,
    )  # fmt: skip
