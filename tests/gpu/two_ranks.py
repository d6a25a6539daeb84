"""One of two processes that torchrun starts: a step over two shards, by two ranks and by one, bit for bit."""

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
from outrider_cloud.engine.cuda_graphs import Graphs, eagerly
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


def main():
    rank, on_card = int(os.environ["RANK"]), os.environ["OUTRIDER_RANKS_ON"] == "cuda"
    if on_card:
        launcher, capture = GpuLauncher(torch.device("cuda", rank)), Graphs()
        torch.cuda.set_device(launcher.device)
    else:
        launcher, capture = HostLauncher(), eagerly
    dist.init_process_group("nccl" if on_card else "gloo")
    whole = random_model("tiny-llama", torch.bfloat16, torch.device("cpu"))
    found = []
    for world in (World(rank, 2, 2), World(0, 1, 2)):
        model = copy.deepcopy(whole.model)
        shard(model, world)
        model.to(launcher.device)
        found.append(logits(as_loaded("tiny", model, torch.bfloat16), launcher, capture))
    same = torch.equal(*found)
    sys.stdout.write(f"rank {rank}: {'the same bits' if same else 'other bits'}\n")
    sys.stdout.flush()
    dist.destroy_process_group()
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
