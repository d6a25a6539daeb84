"""The attention kernel's own text, run on the CPU, against float64 and against itself decoding plainly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_cloud.kernels.layout import Segment
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


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    dim=st.sampled_from([64, 96, 128, 256]),
    share=st.sampled_from([1, 2, 3, 7, 8]),
    kv_heads=st.integers(1, 2),
    window=st.sampled_from([None, None, 1, 33, 300]),
    softcap=st.sampled_from([None, 5.0]),
    sinks=st.booleans(),
)
@settings(max_examples=20)
def test_any_shape_tree_and_window_equals_float64(host, seed, dtype, dim, share, kv_heads, window, softcap, sinks):
    """Head sizes, groups, windows, caps, sinks, contexts and trees in any combination, a chain and padding beside."""
    rng = np.random.default_rng(seed)
    spec = make_spec(dim, share=share, kv_heads=kv_heads, window=window, softcap=softcap, sinks=sinks)
    column = torch.linspace(-1, 2, spec.q_heads).to(dtype) if sinks else None
    pool, free = make_pool(host, spec, dtype, rng)
    rows = int(rng.integers(4, 12))
    cases = [
        make_case(rng, free, spec, dtype, int(rng.integers(0, 400)), random_tree(rng, rows)),
        make_case(rng, free, spec, dtype, int(rng.integers(0, 40)), list(range(-1, int(rng.integers(0, 4))))),
    ]
    out = run(host, pool, spec, cases, padding=2, sinks=column)
    expected = torch.cat([torch.stack([in_float64(c, i, spec, column) for i in range(len(c.query))]) for c in cases])
    assert (out[: len(expected)].double() - expected).abs().max() < (2e-2 if dtype == torch.bfloat16 else 3e-3)
