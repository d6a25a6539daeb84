"""The processes that share a model, and the two sums and gathers that its layers need.

A model is cut into *shards*, and each rank computes one or several of them, each by itself. What shards add up is added
in the order of the shards, wherever they were computed. So the arithmetic is that of the number of shards, and the
number of processes does not show: 4 shards give the same bits on one rank, on two and on four.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from outrider_shared.errors import ConfigError

# Renamed in torch 2.13.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class World:
    """Who computes what.

    Attributes:
        rank: Of this process, 0 leads.
        ranks: Processes.
        shards: Parts that the model is cut into, a multiple of `ranks`.
        ordered: Add in the order of the shards (same bits for any number of ranks) rather than by the library's
            all-reduce, which moves less.
        group: Process group; None is the default one. Not looked at with one rank.
    """

    rank: int = 0
    ranks: int = 1
    shards: int = 1
    ordered: bool = True
    group: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.ranks < 1 or self.shards < 1 or self.shards % self.ranks:
            raise ConfigError(
                f"{self.shards} shards over {self.ranks} ranks", hint="give --shards a multiple of --tensor-parallel"
            )

    @property
    def own(self) -> range:
        """Shards of this rank."""
        each = self.shards // self.ranks
        return range(self.rank * each, (self.rank + 1) * each)

    def total(self, partials: list[torch.Tensor]) -> torch.Tensor:
        """Sum over all shards, of which these are our own: float32 inside, in the dtype of the partials."""
        if not self.ordered and self.ranks > 1:
            local = _added(partials)
            dist.all_reduce(local, group=self.group)
            return local
        if self.ranks == 1:
            return _added(partials)
        mine = torch.stack(partials)
        every = mine.new_empty(self.shards, *mine.shape[1:])
        _all_gather(every, mine, group=self.group)
        return _added(list(every))

    def gather(self, part: torch.Tensor) -> torch.Tensor:
        """Ranks' last dimensions side by side, in order: [..., size] to [..., ranks * size]."""
        if self.ranks == 1:
            return part
        every = part.new_empty(self.ranks, *part.shape)
        _all_gather(every, part.contiguous()[None], group=self.group)
        return torch.movedim(every, 0, -2).reshape(*part.shape[:-1], -1)

    def agree(self, own: bool) -> bool:
        """Whether it is so on every rank; all must ask, at the same point. Over the CPU's backend of the group."""
        if self.ranks == 1:
            return own
        least = torch.tensor([int(own)], dtype=torch.int32)
        dist.all_reduce(least, dist.ReduceOp.MIN, group=self.group)
        return bool(least.item())


def _added(partials: list[torch.Tensor]) -> torch.Tensor:
    if len(partials) == 1:
        return partials[0]
    total = partials[0].float() + partials[1].float()
    for partial in partials[2:]:
        total += partial.float()
    return total.to(partials[0].dtype)
