"""Store and move: the kernels' own text, run on the CPU, against the references."""

from __future__ import annotations

import torch

from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layout import LayerSpec

SPEC = LayerSpec(4, 2, 64, 64, 1.0, None, None, sinks=False)


def in_slots(pool, layer):
    return [plane.transpose(1, 2).reshape(pool.slots, 2, 64) for plane in pool.planes(layer)]


def test_store_and_moves_of_several_sessions(host):
    """Strided rows go to scattered slots; moves whose slots are left and taken in one go end as done one by one."""
    torch.manual_seed(1)
    ours, theirs = CudaKvPool(host, [SPEC] * 3, 128, torch.bfloat16, 4), KvPool([SPEC] * 3, 128, torch.bfloat16)
    slots = torch.randperm(128)[:40]
    for layer in range(3):
        key, value = torch.randn(40, 2, 64).bfloat16(), torch.randn(40, 2, 64).bfloat16()
        for pool in (ours, theirs):
            pool.store(layer, slots, key.transpose(0, 1), value.transpose(0, 1))
    at = slots.tolist()
    groups = [[(at[2], at[1]), (at[4], at[2])], [(at[13], at[11]), (at[14], at[12]), (at[19], at[13])]]
    moves = torch.tensor([move for group in groups for move in group], dtype=torch.int32)
    starts, count = torch.tensor([0, 2, 5, 5], dtype=torch.int32), torch.tensor([2], dtype=torch.int32)
    ours.launch_moves(moves, starts, count, 3)
    for group in groups:
        theirs.move(*zip(*group, strict=True))
    for layer in range(3):
        keys, values = in_slots(ours, layer)
        assert torch.equal(keys, theirs.keys[layer].transpose(0, 1))
        assert torch.equal(values, theirs.values[layer].transpose(0, 1))
