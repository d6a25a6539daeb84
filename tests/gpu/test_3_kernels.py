"""Every kernel on the card against float64 or the rule itself, at real sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.cuda.layers import CudaLayers
from outrider_cloud.kernels.cuda.sampling import CudaSampler, Extras
from outrider_cloud.kernels.cuda.source import RANKS
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layers import Rotation, TorchLayers
from outrider_cloud.kernels.layout import LayerSpec, Segment
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import choose
from support.attention_cases import (
    Case,
    in_float64,
    make_case,
    make_pool,
    make_spec,
    path_of,
    random_tree,
    run,
    take_slots,
)

DTYPES = [torch.bfloat16, torch.float16]
LAYERS = [
    pytest.param({"share": 4}, id="grouped"),
    pytest.param({"share": 1, "softcap": 5.0}, id="softcap"),
    pytest.param({"share": 2, "window": 40}, id="window"),
    pytest.param({"share": 8, "kv_heads": 1, "sinks": True, "window": 300}, id="sinks-window"),
]


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dim", [64, 96, 128, 256])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_trees(place, dtype, dim, layer):
    """Trees, chains and long contexts of several sessions in one step equal float64, padding is finite."""
    rng = np.random.default_rng(3)
    spec = make_spec(dim, **layer)
    sinks = torch.linspace(-1, 2, spec.q_heads).to(dtype) if spec.sinks else None
    long = 3000 if place.on_card else 300
    pool, free = make_pool(place.launcher, spec, dtype, rng, slots=8192 if place.on_card else 1024)
    cases = [
        make_case(rng, free, spec, dtype, long, random_tree(rng, 17)),
        make_case(rng, free, spec, dtype, 255, random_tree(rng, 9)),
        make_case(rng, free, spec, dtype, 0, list(range(-1, 20))),
    ]
    out = run(place.launcher, pool, spec, cases, padding=5, sinks=sinks)
    expected = torch.cat([torch.stack([in_float64(c, i, spec, sinks) for i in range(len(c.query))]) for c in cases])
    assert (out[: len(expected)].double() - expected).abs().max() < (2e-2 if dtype == torch.bfloat16 else 3e-3)
    assert torch.isfinite(out.float()).all()


def test_attention_at_the_longest_context(card):
    """131,072 tokens: no number of slots, splits or entries is too large for its type."""
    rng = np.random.default_rng(4)
    spec = make_spec(128, share=4, kv_heads=2)
    pool, free = make_pool(card.launcher, spec, torch.bfloat16, rng, slots=1 << 18)
    case = make_case(rng, free, spec, torch.bfloat16, 131072 - 8, [-1, 0, 0, 1, 2, 4])
    out = run(card.launcher, pool, spec, [case])
    expected = torch.stack([in_float64(case, i, spec) for i in range(6)])
    assert (out.double() - expected).abs().max() < 2e-2


def test_keys_and_values_beyond_two_to_the_31_elements(card):
    """A pool as a card has room for: what lies at its end is stored, moved and seen as what lies at its start."""
    rng = np.random.default_rng(9)
    spec = make_spec(128, share=4, kv_heads=8)
    slots = (1 << 21) + (1 << 12)
    pool, _ = make_pool(card.launcher, spec, torch.bfloat16, rng, slots=slots)
    assert pool.pool[0, 0].numel() > 1 << 31
    case = make_case(rng, list(range(slots >> 4)), spec, torch.bfloat16, 700, random_tree(rng, 9))  # its last pages
    out = run(card.launcher, pool, spec, [case])
    expected = torch.stack([in_float64(case, i, spec) for i in range(9)])
    assert (out.double() - expected).abs().max() < 2e-2
    last = slots - 1
    pool.pool[0, :, 0, :, 3] = 5.0
    pool.move([3], [last])
    assert bool((pool.pool[0, :, last >> 4, :, last & 15] == 5.0).all())


@pytest.mark.parametrize(("dim", "window"), [(64, None), (128, None), (128, 200), (256, None)])
def test_a_tree_row_has_the_bits_of_plain_decoding(place, dim, window):
    rng = np.random.default_rng(5)
    spec = make_spec(dim, share=4, kv_heads=2, window=window)
    slots = 1 << 16 if place.on_card else 1024
    pool, free = make_pool(place.launcher, spec, torch.bfloat16, rng, slots)
    case = make_case(rng, free, spec, torch.bfloat16, 2500 if place.on_card else 250, random_tree(rng, 16))
    other = make_case(rng, free, spec, torch.bfloat16, 70, [-1, 0, 1])
    drafted = run(place.launcher, pool, spec, [other, case], padding=2)[3:19]
    for row in range(0, 16, 1 if place.on_card else 5):
        path = path_of(case, row)
        plain_pool, plain_free = make_pool(place.launcher, spec, torch.bfloat16, rng, slots)
        own = take_slots(plain_free, len(path))
        plain = Case(Segment(own[:-1], own[-1:], [-1]), case.query[row : row + 1], case.key[path], case.value[path])
        assert torch.equal(run(place.launcher, plain_pool, spec, [plain])[0], drafted[row])


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, top_p=0.9, seed=(1 << 63) + 5),
    SamplingParams(temperature=0.8, top_k=40, seed=4),
    SamplingParams(temperature=1.0, min_p=0.05, seed=5),
    SamplingParams(temperature=1.5, top_k=500, top_p=0.8, min_p=0.01, seed=6),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocabulary", [151936, 128256, 50257])
def test_sampling_chooses_as_the_rule(place, findings, dtype, vocabulary):
    """The token of the rule in numpy, row by row; logarithms may differ in the last place, so a tie may fall apart.

    A vocabulary that no vector divides, too; log-probabilities and the likeliest tokens as log-softmax has them.
    """
    vocabulary = vocabulary if place.on_card else vocabulary % 1000 + 1001
    rows = 96 if place.on_card else 12
    rng = np.random.default_rng(6)
    spread = np.where(np.arange(rows)[:, None] % 5, 4.0, 0.5)  # some are flat: they are read more than once
    logits = torch.from_numpy(rng.standard_normal((rows, vocabulary)) * spread).to(dtype)
    params = [PARAMS[r % len(PARAMS)] for r in range(rows)]
    positions = [int(p) for p in rng.integers(0, 1 << 17, rows)]
    sampler = CudaSampler(place.launcher, **({} if place.on_card else {"ranks": 2, "threads": 64}))
    choices = sampler.sample(logits.to(place.device), positions, params, Extras(logprobs=[True] * rows, top_n=5))
    expected = [choose(logits[r].float().numpy(), positions[r], params[r]) for r in range(rows)]
    chosen = choices.chosen[:, 0].cpu()
    differing = sum(c != e for c, e in zip(chosen.tolist(), expected, strict=True))
    findings[f"sampling/{vocabulary}/{dtype}: of {rows} rows, other tokens than numpy"] = differing
    assert differing <= rows // 48
    logprobs = logits.double().log_softmax(-1)
    own = logprobs.gather(-1, chosen.long()[:, None])[:, 0]
    assert torch.allclose(choices.logprobs.cpu().double(), own, atol=1e-3)
    assert torch.allclose(choices.top_logprobs.cpu().double(), logprobs.topk(5, -1).values, atol=1e-3)
    for ranks in RANKS if place.on_card else (1,):  # however many blocks share a row, the bits are the same
        again = CudaSampler(place.launcher, ranks, **({} if place.on_card else {"threads": 64}))
        told = again.sample(logits.to(place.device), positions, params, Extras(logprobs=[True] * rows, top_n=5))
        assert torch.equal(told.chosen, choices.chosen)
        assert torch.equal(told.logprobs, choices.logprobs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_activations_and_rotations(place, dtype):
    torch.manual_seed(7)
    unit = 2.0**-7 if dtype == torch.bfloat16 else 2.0**-10
    ours, theirs = CudaLayers(place.launcher), TorchLayers()

    def close(a, b):
        return torch.allclose(a.float().cpu(), b.float().cpu(), rtol=2 * unit, atol=2 * unit)

    def drawn(*shape):
        return torch.randn(shape, device=place.device).to(dtype)

    x, residual, weight = drawn(130, 4096), drawn(130, 4096), drawn(4096)
    sums = residual.clone()
    assert close(ours.rms_norm(x, residual, weight, 1e-5), theirs.rms_norm(x, sums, weight, 1e-5))
    assert torch.equal(residual, sums)
    gate_up = drawn(130, 2 * 1536)
    assert close(ours.silu_mul(gate_up), theirs.silu_mul(gate_up))
    for dim in (64, 96, 128, 256):
        spec = LayerSpec(8, 2, dim, dim, 1.0, None, None, sinks=False)
        pool, plain = CudaKvPool(place.launcher, [spec], 256, dtype, 4), KvPool([spec], 256, dtype)
        angle = torch.rand(130, dim // 2, device=place.device).repeat(1, 2) * 6
        rotation = Rotation(angle.cos(), angle.sin(), drawn(dim), drawn(dim), 1e-6)
        slots = torch.randperm(256)[:130].int()
        qkv = drawn(130, 12 * dim)
        query = ours.rope_store(qkv, rotation, slots.to(place.device), pool, 0, 8)
        on_cpu = Rotation(*(part.cpu() for part in (angle.cos(), angle.sin(), rotation.q_norm, rotation.k_norm)), 1e-6)
        assert close(query, theirs.rope_store(qkv.cpu(), on_cpu, slots, plain, 0, 8))
        keys, values = (plane.transpose(0, 1).flatten(1, 2) for plane in pool.planes(0))
        assert close(keys, plain.keys[0])
        assert torch.equal(values.cpu(), plain.values[0])


def test_moves_of_several_sessions_in_every_layer(place):
    spec = LayerSpec(4, 2, 128, 128, 1.0, None, None, sinks=False)
    pool = CudaKvPool(place.launcher, [spec] * 4, 256, torch.bfloat16, 4)
    pool.pool.normal_()
    before = pool.pool.transpose(3, 4).flatten(2, 3).clone()  # [layers, 2, slots, heads, dim]
    moves = torch.tensor([[5, 3], [7, 5], [40, 33], [41, 34]], dtype=torch.int32, device=place.device)
    starts = torch.tensor([0, 2, 4], dtype=torch.int32, device=place.device)
    pool.launch_moves(moves, starts, torch.tensor([2], dtype=torch.int32, device=place.device), 2)
    expected = before.clone()
    expected[:, :, [3, 5, 33, 34]] = before[:, :, [5, 7, 40, 41]]
    assert torch.equal(pool.pool.transpose(3, 4).flatten(2, 3), expected)
