"""One of two processes that torchrun starts: a step over two shards, by two ranks and by one, bit for bit.

The two run it as a graph, and once more where rank 1 cannot capture it: then neither replays, with the same bits.
"""

from __future__ import annotations

import copy
import os
import sys

import numpy as np
import torch
import torch.distributed as dist

from outrider_cloud.bench.shapes import as_loaded, random_model
from outrider_cloud.engine.batch import Batch
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.cuda_graphs import Graphs, Recorder, Uncapturable, eagerly
from outrider_cloud.engine.cuda_runner import CudaRunner
from outrider_cloud.kernels.cuda.gpu import GpuLauncher
from outrider_cloud.kernels.cuda.host import HostLauncher
from outrider_cloud.kernels.cuda.platform import cuda_platform
from outrider_cloud.kernels.cuda.sampling import CudaSampler
from outrider_cloud.kernels.layout import Segment
from outrider_cloud.parallel.shards import shard
from outrider_cloud.parallel.world import World
from outrider_shared.sampling import SamplingParams

CONFIG = EngineConfig(kv_tokens=256, exact=True, buckets=(16,), max_draft_rows=8)


def logits(loaded, launcher, capture):
    sampler = CudaSampler(launcher, ranks=2, threads=64)
    runner = CudaRunner(loaded, cuda_platform(launcher, sampler=sampler), CONFIG, capture)
    tokens, slots = list(range(20, 32)), np.arange(12)
    segment = Segment(slots[:0], slots, list(range(-1, 11)))
    return runner.run(Batch(tokens, list(range(12)), [segment], [3, 11], [4, 12], [SamplingParams()] * 2))


def looking(compute):
    """Looks at the result on the host, which no capture allows."""

    def step():
        result = compute()
        result.sum().item()
        return result

    return step


def refuse(_):
    """What the host build has in the place of a failed capture."""
    raise Uncapturable("asked for by the test")


def fails_on_card(compute):
    """A real capture, which fails at its end, behind all collectives."""
    return Recorder()(looking(compute))


def main():
    rank, on_card = int(os.environ["RANK"]), os.environ["OUTRIDER_RANKS_ON"] == "cuda"
    if on_card:
        launcher, record, fails = GpuLauncher(torch.device("cuda", rank)), Recorder(), fails_on_card
        torch.cuda.set_device(launcher.device)
    else:
        launcher, record, fails = HostLauncher(), eagerly, refuse
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_card else "gloo")
    whole = random_model("tiny-llama", torch.bfloat16, torch.device("cpu"))
    found = []
    pair, alone = World(rank, 2, 2), World(0, 1, 2)
    for world, how in ((pair, record), (pair, fails if rank else record), (alone, record)):
        model = copy.deepcopy(whole.model)
        shard(model, world)
        model.to(launcher.device)
        found.append(logits(as_loaded("tiny", model, torch.bfloat16), launcher, Graphs(world.agree, how)))
    same = all(torch.equal(found[0], other) for other in found)
    sys.stdout.write(f"rank {rank}: {'the same bits' if same else 'other bits'}\n")
    sys.stdout.flush()
    dist.destroy_process_group()
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
