"""Fixed memory of a step's metadata: written on the host, copied over in a few pieces, read by a captured graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

# Fields up to this size go over in one copy, whole; of larger ones only what is used.
_SMALL = 1 << 15


class StaticArrays:
    """Named int32 arrays of fixed capacity in one buffer, on the host and on the device.

    Args:
        capacities: Elements of each.
        device: Where the step reads them.
    """

    def __init__(self, capacities: Mapping[str, int], device: torch.device) -> None:
        ordered = sorted(capacities.items(), key=lambda item: item[1] > _SMALL)
        starts = np.cumsum([0, *(-(-size // 4) * 4 for _, size in ordered)])
        self._range = {
            name: (int(start), int(start) + size) for (name, size), start in zip(ordered, starts, strict=False)
        }
        self._small_end = int(starts[sum(1 for _, size in ordered if size <= _SMALL)])
        self._host = torch.zeros(int(starts[-1]), dtype=torch.int32, pin_memory=device.type == "cuda")
        self._device = torch.zeros(int(starts[-1]), dtype=torch.int32, device=device)
        self._used: dict[str, int] = {}
        # Set behind the copies: the host's memory may be written again once it is reached.
        self._copied: torch.cuda.Event | None = None

    def __getitem__(self, name: str) -> torch.Tensor:
        """The array on the device, whole."""
        start, end = self._range[name]
        return self._device[start:end]

    def write(self, name: str, values: NDArray[np.int32] | list[int], fill: int = 0) -> None:
        """Set the array from its start, the rest to `fill` (of small arrays; of large ones the rest is left)."""
        self._await_copies()
        start, end = self._range[name]
        flat = np.asarray(values, np.int32).reshape(-1)
        assert len(flat) <= end - start, f"{name} holds {end - start}, {len(flat)} were given"
        host = self._host.numpy()
        host[start : start + len(flat)] = flat
        if end <= self._small_end:
            host[start + len(flat) : end] = fill
        else:
            self._used[name] = len(flat)

    def upload(self) -> None:
        """Copy what was written, on the current stream; the next `write` waits for it."""
        self._device[: self._small_end].copy_(self._host[: self._small_end], non_blocking=True)
        for name, used in self._used.items():
            start = self._range[name][0]
            self._device[start : start + used].copy_(self._host[start : start + used], non_blocking=True)
        self._used.clear()
        if self._device.is_cuda:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def _await_copies(self) -> None:
        """A step whose result nobody waited for may not have been copied yet."""
        if self._copied is not None:
            self._copied.synchronize()
            self._copied = None
