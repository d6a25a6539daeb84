"""Threads interleaved at random, every access watched: barriers are enough and each is needed, and tensors have ends.

With OUTRIDER_KERNEL_RACES set to a seed all of the kernels' tests run so, and here every barrier is taken out in turn.
"""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch

from outrider_cloud.kernels.cuda.attention import CudaAttention
from outrider_cloud.kernels.cuda.host import HostLauncher
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.cuda.sampling import CudaSampler, Extras, RowEdit, edit_rows
from outrider_cloud.kernels.cuda.source import (
    Variant,
    attention_variant,
    layers_variant,
    sampling_variant,
)
from outrider_cloud.kernels.layers import Rotation
from outrider_cloud.kernels.layout import LayerSpec
from outrider_shared.errors import InternalError
from outrider_shared.sampling import SamplingParams
from support.attention_cases import make_case, make_pool, make_spec, run

BF16 = torch.bfloat16


def norm(host):
    generator = torch.Generator().manual_seed(1)
    x, residual, weight = (torch.randn(shape, generator=generator).to(BF16) for shape in ((2, 300), (2, 300), (300,)))
    return [CudaLayers(host).rms_norm(x, residual, weight, 1e-5), residual]


def activation(host):
    return [CudaLayers(host).silu_mul(torch.randn(3, 188, generator=torch.Generator().manual_seed(2)).to(BF16))]


def rotation(host):
    generator = torch.Generator().manual_seed(3)
    pool = CudaKvPool(host, [LayerSpec(3, 2, 96, 96, 1.0, None, None, sinks=False)], 32, BF16, 4)
    angle = torch.rand(3, 48, generator=generator).repeat(1, 2)
    weights = [torch.rand(96, generator=generator).to(BF16) for _ in range(2)]
    turned = Rotation(angle.cos(), angle.sin(), *weights, 1e-6)
    qkv, slots = torch.randn(3, 7 * 96, generator=generator).to(BF16), torch.tensor([3, 1, -1], dtype=torch.int32)
    return [CudaLayers(host).rope_store(qkv, turned, slots, pool, 0, 3), pool.pool]


def moves(host):
    pool = CudaKvPool(host, [LayerSpec(4, 2, 64, 64, 1.0, None, None, sinks=False)] * 2, 32, BF16, 4)
    pool.pool.normal_(generator=torch.Generator().manual_seed(4))
    pool.move([2, 4, 6], [1, 2, 4])
    return [pool.pool]


def sampling(host):
    """Filters, edits by other threads than those that read them, log-probabilities; a row that asks for nothing, one
    whose tokens may all win, and one of which warps list more than they have room for."""
    logits = 3 * torch.randn(5, 700, generator=torch.Generator().manual_seed(5)).to(BF16)
    logits[1, 699] = logits[1].max() + 1  # what the other rank lists is not near any more, in part
    params = [
        SamplingParams(1.0, top_k=50, top_p=0.8, seed=1),
        SamplingParams(0.9, min_p=0.004, seed=2),
        SamplingParams(),
        SamplingParams(0.9, seed=3),
        SamplingParams(20.0, top_p=0.9, seed=4),
    ]
    edits = [edit_rows([RowEdit(token, 1.2) for token in range(17, 90)])] * 5
    wanted = Extras(logprobs=[True, *[False] * 4], top_n=2, edits=edits)
    told = CudaSampler(host, ranks=2, threads=64, room=180).sample(logits, [1, 2, 3, 4, 5], params, wanted)
    return [told.chosen, told.logprobs, told.top_tokens]


def attention(host):
    rng = np.random.default_rng(6)
    spec = make_spec(64, share=4, kv_heads=1)
    pool, free = make_pool(host, spec, BF16, rng)
    case = make_case(rng, free, spec, BF16, 60, [-1, 0, 1, 1, 2])
    return [run(host, pool, spec, [case], padding=1)]


WORK = [norm, activation, rotation, moves, sampling, attention]


@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
def test_in_any_order_and_without_a_race_the_results_are_the_same(host, racing, work):
    """Bit for bit what threads give that run one after the other."""
    assert all(torch.equal(a, b) for a, b in zip(work(racing), work(host), strict=True))


# Each barrier by its file and place in it, and the work that shows its absence.
BARRIERS = {
    ("layers", layers_variant(BF16)): (norm, {"__syncthreads": (0, 1)}),
    ("rotation", layers_variant(BF16)): (rotation, {"__syncwarp": (0,)}),
    ("sampling", sampling_variant(BF16, 2, 64)): (
        sampling,
        # The first two are those of block_sum.
        {"__syncthreads": (2, 3, 4, 5, 6, 7), "__syncwarp": (0, 1), "cluster_sync": (0, 1, 2, 3, 4, 5, 6)},
    ),
    ("attention", attention_variant(64, BF16)): (attention, {"__syncthreads": (2, 3, 4)}),
}
FEW = {"layers __syncthreads 1", "rotation __syncwarp 0", "sampling cluster_sync 3"}


def barriers():
    for (name, variant), (work, kinds) in BARRIERS.items():
        for kind, places in kinds.items():
            for place in places:
                label = f"{name} {kind} {place}"
                if label in FEW or os.environ.get("OUTRIDER_KERNEL_RACES"):
                    yield pytest.param(variant, work, kind, place, id=label)


@pytest.mark.parametrize(("variant", "work", "kind", "place"), list(barriers()))
def test_a_barrier_that_is_missing_is_found(cache, monkeypatch, variant, work, kind, place):
    """The watch is no rubber stamp: taken out of the text, every barrier's absence is told."""
    text = Variant.text

    def without(self):
        whole = text(self)
        if self != variant:
            return whole
        at = [found.start() for found in re.finditer(rf"{kind}\(\);", whole)][place]
        return f"{whole[:at]};{whole[at:].partition(';')[2]}"

    monkeypatch.setattr(Variant, "text", without)

    def with_some_seed():
        for seed in range(1, 9):
            work(HostLauncher(cache, races=seed))

    with pytest.raises(InternalError, match=r"no barrier separates|a block that has ended"):
        with_some_seed()


@pytest.mark.parametrize("dim", [64, 96])
def test_queries_that_lie_anywhere_are_read_aligned(host, racing, monkeypatch, dim):
    """Sixteen bytes at a time, eight of values of 96: a query that lies otherwise is copied first."""
    rng = np.random.default_rng(8)
    spec = make_spec(dim, share=2, kv_heads=1)
    pool, free = make_pool(racing, spec, BF16, rng)
    case = make_case(rng, free, spec, BF16, 20, [-1, 0])
    expected = run(racing, pool, spec, [case])
    apart = torch.empty(2 * 2 * dim + 1, dtype=BF16)[1:].view(2, 2, dim)
    apart.copy_(case.query)
    plan = CudaAttention(racing, 4).plan([case.segment], 2)
    assert torch.equal(plan.attend(apart.transpose(0, 1), pool, 0, spec, None), expected)
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **_: self)
    with pytest.raises(InternalError, match="an access that is not aligned"):
        plan.attend(apart.transpose(0, 1), pool, 0, spec, None)


def test_an_access_beyond_a_tensor_is_told(cache, monkeypatch):
    """One value behind the end of a row's weights, which memory of nobody or of somebody else follows."""
    text = Variant.text
    broken = ("(weight + i)", "(weight + i + 2)")
    assert broken[0] in layers_variant(BF16).text()
    monkeypatch.setattr(Variant, "text", lambda self: text(self).replace(*broken))
    with pytest.raises(InternalError, match="none of the kernel's tensors"):
        norm(HostLauncher(cache, races=1))


def test_a_barrier_that_some_threads_do_not_reach_is_told(cache, monkeypatch):
    """As an error of the launch: the process goes on."""
    text = Variant.text
    broken = ("  __syncthreads();\n  if (warp == 0) {", "  if (warp == 0) __syncthreads();\n  if (warp == 0) {")
    monkeypatch.setattr(Variant, "text", lambda self: text(self).replace(*broken))
    with pytest.raises(InternalError, match=r"threads wait at different barriers|left behind"):
        norm(HostLauncher(cache))
