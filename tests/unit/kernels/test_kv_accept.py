"""Store, move and the accept walk: the kernels' own text, run on the CPU, against the references."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.engine.accept import accept
from outrider_cloud.kernels.cuda.accept import accept_walk
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layout import LayerSpec
from outrider_shared.tree import DraftTree

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


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25)
def test_walk_equals_the_engines(host, seed):
    """Random forests with random choices commit what the engine's own walk commits."""
    rng = np.random.default_rng(seed)
    starts, tokens, parents, chosen, expected = [0], [], [], [], []
    for _ in range(rng.integers(1, 5)):
        tree = DraftTree([1])
        nodes, rows = [], {}
        for _ in range(rng.integers(0, 50)):
            above = nodes[int(rng.integers(0, len(nodes)))] if nodes and rng.random() < 0.8 else None
            token = int(rng.integers(0, 6))
            siblings = tree.children if above is None else above.children
            if token in siblings:
                continue
            node = tree.append(token, above, 1)
            rows[id(node)] = len(nodes) + 1
            nodes.append(node)
        choices = rng.integers(0, 6, len(nodes) + 1).tolist()
        committed, offsets = accept(nodes, choices)
        below = [rows.get(id(node.parent), 0) for node in nodes]
        expected.append((committed, offsets, offsets[-1] in below))
        tokens += [0, *(node.token for node in nodes)]
        parents += [-1, *below]
        chosen += choices
        starts.append(len(tokens))
    as_int = [torch.tensor(values, dtype=torch.int32) for values in (starts, [len(expected)], tokens, parents, chosen)]
    out = accept_walk(host, *as_int, 64)
    for session, (committed, offsets, refused) in enumerate(expected):
        assert out.lengths[session].item() == len(committed)
        assert out.path[session, : len(offsets)].tolist() == offsets
        assert bool(out.refused[session]) == refused
