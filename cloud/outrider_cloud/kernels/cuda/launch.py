"""How a kernel is started: one interface for the GPU and for the host build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.kernels.cuda.source import Variant


@dataclass(frozen=True, slots=True)
class Long:
    """A 64-bit integer argument; a plain int is passed as 32 bits."""

    value: int


# A tensor is passed as its address, None as a null pointer, a float as 32 bits.
Argument = torch.Tensor | Long | int | float | None


class Launcher(Protocol):
    """Starts kernels on one device.

    Attributes:
        device: Where the tensors must lie.
        processors: Multiprocessors, to size grids that stay resident; 1 on the host.
        shared_bytes: Most shared memory that a block may ask for.
    """

    device: torch.device
    processors: int
    shared_bytes: int

    def launch(
        self,
        variant: Variant,
        kernel: str,
        grid: tuple[int, int, int],
        threads: int,
        arguments: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        """Start a kernel on the current stream; the caller has checked shapes and types.

        Args:
            variant: Module that the kernel is in.
            kernel: Its entry point.
            grid: Blocks in x, y, z.
            threads: Threads of a block.
            arguments: In the order of the kernel's parameters.
            shared_bytes: Dynamic shared memory of a block.
        """
