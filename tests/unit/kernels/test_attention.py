"""The attention kernel's own text, run on the CPU, against float64 and against itself decoding plainly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from outrider_cloud.kernels.cuda.attention import CudaAttention
from outrider_cloud.kernels.cuda.kv import CudaKvPool
from outrider_cloud.kernels.layout import LayerSpec, Segment

PAGE_BITS = 4
SLOTS = 1024


@dataclass
class Case:
    """One session: its context, a tree of rows, and random queries, keys and values per token."""

    segment: Segment
    query: torch.Tensor  # [rows, q_heads, dim]
    key: torch.Tensor  # [context + rows, kv_heads, dim]
    value: torch.Tensor


def make_spec(dim, share=4, kv_heads=2, **changes):
    fields = {"scale": dim**-0.5, "window": None, "softcap": None, "sinks": False, **changes}
    return LayerSpec(share * kv_heads, kv_heads, dim, dim, **fields)


def make_pool(host, spec, dtype, rng):
    pool = CudaKvPool(host, [spec], SLOTS, dtype, PAGE_BITS)
    return pool, list(rng.permutation(SLOTS >> PAGE_BITS))


def take_slots(free, count):
    pages = [free.pop() for _ in range(-(-count >> PAGE_BITS) + 1)]
    return np.concatenate([np.arange(16) + (page << PAGE_BITS) for page in pages])[:count].astype(np.int64)


def make_case(rng, free, spec, dtype, context, parents):
    slots = take_slots(free, context + len(parents))
    segment = Segment(slots[:context], slots[context:], parents)

    def normal(*shape):
        return torch.from_numpy(rng.standard_normal(shape, np.float32)).to(dtype)

    tokens = context + len(parents)
    return Case(
        segment,
        normal(len(parents), spec.q_heads, spec.k_dim),
        normal(tokens, spec.kv_heads, spec.k_dim),
        normal(tokens, spec.kv_heads, spec.k_dim),
    )


def run(host, pool, spec, cases, padding=0, sinks=None):
    for case in cases:
        slots = torch.from_numpy(np.concatenate((case.segment.context, case.segment.slots)))
        pool.store(0, slots, case.key.transpose(0, 1), case.value.transpose(0, 1))
    query = torch.cat([case.query for case in cases])
    query = torch.cat((query, query.new_zeros(padding, *query.shape[1:])))
    attention = CudaAttention(host, PAGE_BITS, (spec.window or 0,))
    plan = attention.plan([case.segment for case in cases], len(query))
    return plan.attend(query.transpose(0, 1), pool, 0, spec, sinks)


def path_of(case, row):
    context, path = len(case.segment.context), []
    while row >= 0:
        path.append(context + row)
        row = case.segment.parents[row]
    return list(range(context)) + path[::-1]


def in_float64(case, row, spec, sinks=None):
    path = path_of(case, row)
    seen = path[-spec.window :] if spec.window else path
    out = []
    for head in range(spec.q_heads):
        kv_head = head // (spec.q_heads // spec.kv_heads)
        scores = case.key[seen, kv_head].double() @ case.query[row, head].double() * spec.scale
        if spec.softcap:
            scores = torch.tanh(scores / spec.softcap) * spec.softcap
        if sinks is not None:
            scores = torch.cat((scores, sinks[head : head + 1].double()))
        weights = scores.softmax(0)[: len(seen)]
        out.append(weights @ case.value[seen, kv_head].double())
    return torch.stack(out)


def random_tree(rng, rows):
    """A chain of one to three rows, then a random tree below it."""
    chain = int(rng.integers(1, 4))
    return [i - 1 if i < chain else int(rng.integers(0, i)) for i in range(rows)]


SHAPES = [
    pytest.param(torch.bfloat16, {"dim": 64, "share": 4}, id="bf16-64-gqa4"),
    pytest.param(torch.bfloat16, {"dim": 64, "share": 3, "window": 40}, id="bf16-64-gqa3-window"),
    pytest.param(torch.bfloat16, {"dim": 64, "share": 1, "softcap": 3.0}, id="bf16-64-mha-softcap"),
    pytest.param(torch.bfloat16, {"dim": 64, "share": 20, "kv_heads": 1, "sinks": True}, id="bf16-64-mqa20-sinks"),
    pytest.param(torch.float16, {"dim": 96, "share": 2}, id="fp16-96-gqa2"),
    pytest.param(torch.bfloat16, {"dim": 128, "share": 4, "kv_heads": 1}, id="bf16-128-gqa4"),
    pytest.param(torch.float16, {"dim": 256, "share": 8, "kv_heads": 1}, id="fp16-256-gqa8"),
]


@pytest.mark.parametrize(("dtype", "shape"), SHAPES)
def test_rows_of_random_trees_equal_float64(host, dtype, shape):
    """Trees and chains of several sessions in one step give what attention in float64 gives for each row's path."""
    rng = np.random.default_rng(7)
    spec = make_spec(**shape)
    sinks = torch.linspace(-1, 2, spec.q_heads).to(dtype) if spec.sinks else None
    pool, free = make_pool(host, spec, dtype, rng)
    cases = [
        make_case(rng, free, spec, dtype, 300, random_tree(rng, 9)),
        make_case(rng, free, spec, dtype, 0, list(range(-1, 17))),
    ]
    out = run(host, pool, spec, cases, padding=3, sinks=sinks)
    row = 0
    tolerance = 1.5e-2 if dtype == torch.bfloat16 else 2e-3
    for case in cases:
        for i in range(len(case.query)):
            expected = in_float64(case, i, spec, sinks)
            assert (out[row].double() - expected).abs().max() < tolerance
            row += 1
    assert torch.isfinite(out.float()).all()


@pytest.mark.parametrize(("window", "share"), [(None, 4), (40, 2)])
def test_a_row_has_the_bits_of_plain_decoding(host, window, share):
    """Whatever tree a row is drafted in and whoever shares its step, its bits are those of decoding its path alone."""
    rng = np.random.default_rng(11)
    spec = make_spec(64, share=share, kv_heads=1, window=window)
    pool, free = make_pool(host, spec, torch.bfloat16, rng)
    case = make_case(rng, free, spec, torch.bfloat16, 250, random_tree(rng, 12))
    other = make_case(rng, free, spec, torch.bfloat16, 70, [-1, 0, 1])
    alone = run(host, pool, spec, [case])
    beside = run(host, pool, spec, [other, case], padding=2)[3:15]
    assert torch.equal(alone, beside)
    for row in range(len(case.query)):
        path = path_of(case, row)
        plain_pool, plain_free = make_pool(host, spec, torch.bfloat16, rng)
        slots = take_slots(plain_free, len(path))
        plain = Case(Segment(slots[:-1], slots[-1:], [-1]), case.query[row : row + 1], case.key[path], case.value[path])
        assert torch.equal(run(host, plain_pool, spec, [plain])[0], alone[row])
