"""The processes that train one model together: one, or as many as `torchrun` started (gloo on a CPU, NCCL on GPUs)."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

# While the first process lets the target write texts, the others wait for hours; torchrun ends them when it dies.
_PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def total(self, value: float) -> float:
        """The sum over all processes."""
        if self.size == 1:
            return value
        summed = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(summed)
        return float(summed)

    def agreed(self, value: float) -> float:
        """The first process's value, in all of them."""
        if self.size == 1:
            return value
        told: Tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined() -> Iterator[World]:
    """The world of this process, from the variables that `torchrun` sets; alone without them."""
    cuda = torch.cuda.is_available()
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if size == 1:
        yield World(device=device)
        return
    dist.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE, device_id=device if cuda else None)
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()
