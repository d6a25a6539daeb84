"""Linear layers of which a rank holds some shards; each shard is a linear layer of its own, so its bits are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outrider_cloud.parallel.world import World


class ColumnLinear(nn.Module):
    """Our shards' outputs, side by side: [..., in] -> [..., own * out / shards].

    Args:
        parts: One per own shard.
    """

    def __init__(self, parts: Iterable[nn.Linear]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        outs = [part(x) for part in self.parts]
        return outs[0] if len(outs) == 1 else torch.cat(outs, -1)


class GatheredLinear(ColumnLinear):
    """All shards' outputs on every rank: [..., in] -> [..., out]. Padding of the last shards is cut off.

    Args:
        parts: One per own shard.
        out: Columns that count.
        world: Who has the others.
    """

    def __init__(self, parts: Iterable[nn.Linear], out: int, world: World) -> None:
        super().__init__(parts)
        self.out_features = out
        self._world = world

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        return self._world.gather(super().forward(x))[..., : self.out_features]


class RowLinear(nn.Module):
    """The sum over all shards of what each makes of its part of the input: [..., own * in / shards] -> [..., out].

    Args:
        parts: One per own shard, without a bias.
        bias: [out] or None, added once.
        world: Who has the others.
        whole: The input is whole on every rank: [..., in].
    """

    def __init__(self, parts: Iterable[nn.Linear], bias: nn.Parameter | None, world: World, *, whole: bool) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.bias = bias
        self._world, self._whole = world, whole
        self._width = int(getattr(self.parts[0], "in_features", 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute."""
        first = self._world.own.start if self._whole else 0
        starts = [(first + i) * self._width for i in range(len(self.parts))]
        # Contiguous: a product's bits may depend on how its input lies in memory.
        partials = [
            part(x[..., start : start + self._width].contiguous())
            for part, start in zip(self.parts, starts, strict=True)
        ]
        out = self._world.total(partials)
        return out if self.bias is None else out + self.bias
