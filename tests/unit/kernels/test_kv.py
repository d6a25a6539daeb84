"""Store and move: the kernels' own text, run on the CPU, against the references."""

from __future__ import annotations

import numpy as np
import torch

from outrider_cloud.kernels.cuda.attention import CudaAttention
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layers import Rotation
from outrider_cloud.kernels.layout import LayerSpec, Segment

SPEC = LayerSpec(4, 2, 64, 64, 1.0, None, None, sinks=False)


def in_slots(pool, layer):
    return [plane.transpose(1, 2).reshape(pool.slots, 2, 64) for plane in pool.planes(layer)]


def test_slots_beyond_two_to_the_31_elements(host, monkeypatch):
    """As large as a card's memory holds: stored by both kernels, moved and seen at the end of the pool as elsewhere.

    The memory is asked for and not touched, but for a few pages.
    """
    heads, dim, slots = 8, 256, (1 << 20) + 64
    spec = LayerSpec(heads, heads, dim, dim, dim**-0.5, None, None, sinks=False)
    with monkeypatch.context() as patched:
        patched.setattr(torch, "zeros", torch.empty)
        pool = CudaKvPool(host, [spec], slots, torch.bfloat16, 4)
    assert pool.pool[0, 0].numel() > 1 << 31
    torch.manual_seed(2)
    own = np.arange(slots - 20, slots)
    key, value, query = (torch.randn(20, heads, dim).bfloat16() for _ in range(3))
    pool.store(0, torch.from_numpy(own), key.transpose(0, 1), value.transpose(0, 1))
    qkv, still = torch.cat((query, key, value), 1)[19:].reshape(1, -1), torch.zeros(1, 0)
    rotation = Rotation(still, still)
    CudaLayers(host).rope_store(qkv, rotation, torch.tensor([7], dtype=torch.int32), pool, 0, heads)
    pool.move([7], [slots - 1])
    # Its first four tokens fill a page to its end.
    segment = Segment(own[4:-1], own[-1:], [-1])
    plan = CudaAttention(host, 4).plan([segment], 1)
    out = plan.attend(query[19:].transpose(0, 1), pool, 0, spec, None)[0]
    scores = torch.einsum("hd,thd->ht", query[19].double(), key[4:].double()) * dim**-0.5
    expected = torch.einsum("ht,thd->hd", scores.softmax(-1), value[4:].double())
    assert (out.double() - expected).abs().max() < 2e-2


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
