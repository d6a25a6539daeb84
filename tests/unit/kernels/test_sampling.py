"""The sampling kernel's own text, run on the CPU, against the rule in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from outrider_cloud.kernels.cuda.host import HostLauncher
from outrider_cloud.kernels.cuda.sampling import CudaSampler, Extras, RowEdit, edit_rows, ranks_of
from outrider_cloud.kernels.cuda.source import RANKS, Variant
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.rule import choose, filtered_scores

VOCABULARY = 3000


def random_logits(rng, rows, vocabulary, dtype):
    spread = rng.uniform(0.5, 6.0, (rows, 1))
    return torch.from_numpy(rng.standard_normal((rows, vocabulary)) * spread).to(dtype)


def small(host):
    """Fewer blocks and threads than on a card, so that a test takes milliseconds."""
    return CudaSampler(host, ranks=2, threads=64)


PARAMS = [
    SamplingParams(),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=0.7, top_p=0.9, seed=(1 << 63) + 5),
    SamplingParams(temperature=1.3, top_k=1, seed=3),
    SamplingParams(temperature=0.8, top_k=40, seed=4),
    SamplingParams(temperature=1.0, min_p=0.05, seed=5),
    SamplingParams(temperature=1.5, top_k=500, top_p=0.8, min_p=0.01, seed=6),
    SamplingParams(temperature=1e-5, top_p=0.5, seed=7),
    SamplingParams(temperature=50.0, top_k=VOCABULARY + 1, top_p=0.999, seed=8),
]


@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.bfloat16, VOCABULARY), (torch.float16, 1111)])
def test_choices_are_those_of_the_rule(host, dtype, vocabulary):
    """Every row gets the token that the rule in numpy chooses from the same 16-bit logits."""
    rng = np.random.default_rng(3)
    params = PARAMS * 2
    logits = random_logits(rng, len(params), vocabulary, dtype)
    positions = [int(p) for p in rng.integers(0, 1 << 20, len(params))]
    chosen = small(host).choose(logits, positions, params)
    expected = [choose(logits[r].float().numpy(), positions[r], params[r]) for r in range(len(params))]
    assert chosen == expected


def test_the_shapes_that_cards_run_choose_the_same(host):
    """512 threads, and as many blocks a row as there are few rows: choices and log-probabilities have the same bits."""
    logits = random_logits(np.random.default_rng(4), 2, VOCABULARY, torch.bfloat16)
    params = [SamplingParams(temperature=0.9, top_p=0.95, seed=11), SamplingParams(temperature=1.0, seed=12)]
    expected = [choose(logits[row].float().numpy(), 77, params[row]) for row in range(2)]
    wanted = Extras(logprobs=[True, True], top_n=2)
    told = [CudaSampler(host, ranks).sample(logits, [77, 77], params, wanted) for ranks in (RANKS[0], 2)]
    for one in told:
        assert one.chosen[:, 0].tolist() == expected
        assert torch.equal(one.logprobs, told[0].logprobs)
        assert torch.equal(one.top_logprobs, told[0].top_logprobs)
    assert [ranks_of(rows, 132) for rows in (1, 33, 34, 66, 128, 132, 133, 1024)] == [8, 8, 4, 4, 2, 2, 1, 1]


@pytest.mark.parametrize("room", [1, 40])
def test_rows_that_are_read_twice_choose_the_same(host, room):
    """Where warps have listed more than they have room for: a few rows of these with 40, nearly all with one."""
    rng = np.random.default_rng(21)
    logits = random_logits(rng, 2 * len(PARAMS), VOCABULARY, torch.bfloat16)
    logits[::2] = (logits[::2] * 2).round() / 2
    params = PARAMS * 2
    chosen = CudaSampler(host, ranks=2, threads=64, room=room).choose(logits, range(len(params)), params)
    assert chosen == [choose(z.float().numpy(), i, params[i]) for i, z in enumerate(logits)]


def test_usual_rows_are_read_once(cache, monkeypatch):
    """The kernel with one attempt, and with token 0 in the place of a choice by all: it is never in need of either."""
    text = Variant.text
    instead = (
        ("#define ATTEMPTS 3", "#define ATTEMPTS 1"),
        ("choose_among_all(shared, Every", "(best = 1e9f, token = 0); (Every"),
    )

    def changed(self):
        whole = text(self)
        for old, new in instead:
            assert old in whole
            whole = whole.replace(old, new)
        return whole

    monkeypatch.setattr(Variant, "text", changed)
    rng = np.random.default_rng(23)
    z = np.concatenate((rng.standard_normal((9, 2900)) * 2.5, rng.uniform(5, 20, (9, 100))), 1)
    logits = torch.from_numpy(rng.permuted(z, axis=1)).to(torch.bfloat16)
    params = [
        SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=1)
        for t, k, p, m in (
            (0.7, 0, 0.9, 0.0), (1.0, 0, 0.95, 0.0), (0.3, 0, 0.99, 0.0), (1.0, 50, 1.0, 0.0), (0.3, 40, 1.0, 0.0),
            (0.8, 20, 0.95, 0.05), (1.0, 0, 1.0, 0.05), (1.0, 0, 1.0, 0.0), (1.6, 0, 1.0, 0.0),
        )
    ]  # fmt: skip
    chosen = small(HostLauncher(cache)).choose(logits, range(9), params)
    assert chosen == [choose(z.float().numpy(), i, params[i]) for i, z in enumerate(logits)]


def test_what_is_not_listed_counts(host):
    """Thousands of tokens that weigh little each decide together where top-p cuts; top-k may need one of them."""
    rng = np.random.default_rng(22)
    z = np.full((1, VOCABULARY), -13.0) + 0.5 * rng.standard_normal((1, VOCABULARY))
    z[0, [5, 700, 1900, 2500]] = 0.0, -1.0, -4.0, -6.0
    logits = torch.from_numpy(z).to(torch.bfloat16)
    for params in (
        *(SamplingParams(temperature=1.0, top_p=p, seed=3) for p in (0.7, 0.99, 0.996, 0.997, 0.9985, 0.9999)),
        SamplingParams(temperature=1.0, top_k=4, seed=4),
        SamplingParams(temperature=1.0, top_k=5, seed=5),
        SamplingParams(temperature=1.0, min_p=1e-7, seed=6),
        SamplingParams(temperature=9.0, top_p=0.9, seed=7),
    ):
        rows = 60
        chosen = small(host).choose(logits.expand(rows, -1), list(range(rows)), [params] * rows)
        assert chosen == [choose(logits[0].float().numpy(), i, params) for i in range(rows)]


def test_filters_keep_what_the_rule_keeps(host):
    """Over many positions of one row, exactly the tokens that the rule's filters leave are ever chosen."""
    rng = np.random.default_rng(5)
    # Few distinct values: ties at every border.
    row = torch.from_numpy(rng.integers(-8, 9, 64) / 4.0).to(torch.bfloat16)
    for params in (
        SamplingParams(temperature=3.0, top_k=9, seed=1),
        SamplingParams(temperature=3.0, top_p=0.37, seed=2),
        SamplingParams(temperature=3.0, top_k=30, top_p=0.6, min_p=0.2, seed=3),
    ):
        kept = set(np.flatnonzero(np.isfinite(filtered_scores(row.float().numpy(), params))).tolist())
        chosen = small(host).choose(row.expand(150, -1), list(range(150)), [params] * 150)
        assert set(chosen) <= kept
        assert chosen == [choose(row.float().numpy(), i, params) for i in range(150)]
        assert len(set(chosen)) > len(kept) // 2


def test_ties_go_to_the_lowest_token_and_numbers_are_checked(host):
    """Equal logits choose the lowest id; a row with a NaN says so and the others do not."""
    logits = torch.zeros(3, VOCABULARY, dtype=torch.bfloat16)
    logits[0, [17, 2000]] = 4.0
    logits[1, 2500] = float("nan")
    logits[2, 2999] = 1.0
    choices = small(host).sample(logits, [0, 0, 0], [SamplingParams()] * 3)
    assert choices.chosen[:, 0].tolist() == [17, 0, 2999]
    assert choices.chosen[:, 1].tolist() == [0, 1, 0]


def test_log_probabilities_and_the_likeliest(host):
    """Rows that ask get the log-probability of their choice and the likeliest tokens, as log-softmax gives them."""
    rng = np.random.default_rng(9)
    logits = random_logits(rng, 3, VOCABULARY, torch.bfloat16)
    params = [SamplingParams(temperature=1.0, seed=r) for r in range(3)]
    extras = Extras(logprobs=[True, False, True], top_n=5)
    choices = small(host).sample(logits, [4, 4, 4], params, extras)
    expected = logits.float().log_softmax(-1)
    for row in (0, 2):
        token = int(choices.chosen[row, 0])
        assert choices.logprobs[row].item() == pytest.approx(expected[row, token].item(), abs=1e-4)
        order = np.lexsort((np.arange(VOCABULARY), -logits[row].float().numpy()))[:5]
        assert choices.top_tokens[row].tolist() == order.tolist()
        assert torch.allclose(choices.top_logprobs[row], expected[row, torch.from_numpy(order)], atol=1e-4)
    assert choices.logprobs[1].item() == 0.0


def test_edits_and_masks_come_before_the_rule(host):
    """Penalties and bias change single logits, a mask forbids tokens; the choice is the rule's over what results."""
    rng = np.random.default_rng(13)
    logits = random_logits(rng, 4, VOCABULARY, torch.bfloat16)
    params = [SamplingParams(), *(SamplingParams(temperature=1.0, top_p=0.9, seed=r) for r in range(3))]
    tokens = rng.choice(VOCABULARY, 200, replace=False)
    edits = [
        [RowEdit(int(t), 1.3, 0.3, 0.2, float(rng.uniform(-1, 4))) for t in tokens],
        [],
        [RowEdit(5, bias=50.0)],
        [],
    ]
    allowed = rng.random(VOCABULARY) < 0.5
    padded = np.zeros(-(-VOCABULARY // 32) * 32, np.bool_)
    padded[:VOCABULARY] = allowed
    mask = np.packbits(padded, bitorder="little").view(np.uint32)
    extras = Extras(edits=[edit_rows(row) for row in edits], masks=[None, mask, None, mask])
    choices = small(host).sample(logits, [1, 2, 3, 4], params, extras)
    for row in range(4):
        z = logits[row].float().numpy().copy()
        for edit in edits[row]:
            value, r = z[edit.token], np.float32(edit.repetition)
            value = value / r if value > 0 else value * r
            z[edit.token] = ((value - np.float32(edit.frequency)) - np.float32(edit.presence)) + np.float32(edit.bias)
        if row % 2:
            z[~allowed] = -np.inf
        assert choices.chosen[row, 0].item() == choose(z, row + 1, params[row])
