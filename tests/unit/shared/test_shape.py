"""Penalties and bias: the numpy definition, by hand; torch and the incremental counts against it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.errors import ParameterError
from outrider_shared.sampling import SamplingParams
from outrider_shared.sampling.shape import TokenCounts, count_tokens, shaped
from outrider_shared.sampling.shape_torch import Shaping, shape

VOCABULARY = 40
LOGITS = st.lists(st.floats(-30, 30, width=32), min_size=VOCABULARY, max_size=VOCABULARY)
LOGS = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=60)
PARAMS = st.builds(
    SamplingParams,
    presence_penalty=st.sampled_from([0.0, 0.7, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.3, -1.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCABULARY - 1), st.floats(-100, 100), max_size=5),
)


def test_each_term_by_hand():
    """Repetition sees the prompt, presence and frequency only the answer; bias comes last."""
    logits = np.array([2.0, -2.0, 2.0, 1.0, 0.5], np.float32)
    params = SamplingParams(
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=2.0,
        logit_bias={3: -1.0, 4: 2.0},
        answer_start=2,
    )
    got = shaped(logits, [0, 1, 1, 2, 2], params)
    assert got.tolist() == [1.0, -4.0 - 0.25 - 0.5, 1.0 - 0.5 - 0.5, 0.0, 2.5]
    assert logits[0] == 2.0


def test_nothing_asked_for_changes_nothing():
    logits = np.zeros(4, np.float32)
    assert shaped(logits, [1, 2], SamplingParams(0.7)) is logits


@given(st.lists(st.tuples(LOGITS, LOGS, st.integers(0, 60), PARAMS), min_size=1, max_size=4), st.integers(0, 5))
def test_torch_shapes_every_row_as_the_definition_does(rows, drafted):
    """Bit for bit, with counts followed incrementally and the end of each log taken as a drafted path."""
    logits = np.array([row for row, _, _, _ in rows], np.float32)
    shaping, expected = Shaping(), []
    for index, (_, log, start, changed) in enumerate(rows):
        cut = max(0, len(log) - drafted)
        start_ = min(start, cut)
        params = SamplingParams(
            0.0, 0, 1.0, 0.0, 0, changed.presence_penalty, changed.frequency_penalty, changed.repetition_penalty,
            changed.logit_bias, start_,
        )  # fmt: skip
        counts = TokenCounts(start_)
        counts.follow(log[: cut // 2])
        counts.follow(log[:cut])
        if params.penalised:
            shaping.penalties.append((index, *counts.along(log[cut:]), params))
        if params.logit_bias:
            shaping.biases.append((index, params.logit_bias))
        expected.append(shaped(logits[index], log, params))
    got = shape(torch.from_numpy(logits), shaping).numpy()
    np.testing.assert_array_equal(got, np.stack(expected))


@given(LOGS, st.integers(0, 60))
def test_counts_are_of_the_answer_alone(log, start):
    ids, counts = count_tokens(log, start)
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == {t: log[start:].count(t) for t in log}


def test_masked_and_banned_tokens_are_removed_from_their_row_alone():
    mask = np.array([0b101, 0b10], np.uint32)
    got = shape(torch.zeros(3, VOCABULARY), Shaping(banned=[(0, [7])], masks=[(2, mask)]))
    assert torch.isfinite(got).sum(-1).tolist() == [VOCABULARY - 1, VOCABULARY, 3]
    assert torch.isfinite(got[2]).nonzero().flatten().tolist() == [0, 2, 33]


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"repetition_penalty": 0.0},
        {"logit_bias": {1: 101.0}},
        {"logit_bias": {-1: 1.0}},
        {"logit_bias": {1: float("nan")}},
        {"logit_bias": ((1, 1.0), (1, 2.0))},
        {"logit_bias": dict.fromkeys(range(1025), 0.0)},
    ],
)
def test_parameters_out_of_range_are_refused(fields):
    with pytest.raises(ParameterError):
        SamplingParams(**fields)
