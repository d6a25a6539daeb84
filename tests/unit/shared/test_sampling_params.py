"""Sampling parameters: their ranges, and that both sides hold the same float32 bits."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.errors import ParameterError
from outrider_shared.sampling import SamplingParams
from outrider_shared.wire import sampling_from_wire, sampling_to_wire
from outrider_wire.v1 import verifier_pb2 as pb

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 0.0), ("temperature", 100.0), ("temperature", 1e-30), ("top_k", 0), ("top_k", 1),
        ("top_k", 1 << 31), ("top_p", 1e-9), ("top_p", 1.0), ("min_p", 0.0), ("min_p", 1.0), ("seed", 0),
        ("seed", 2**64 - 1),
    ],
)  # fmt: skip
def test_the_ends_of_each_range_are_taken(field: str, value: float):
    assert getattr(SamplingParams(**{field: value}), field) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1e-9), ("temperature", 100.1), ("temperature", NAN), ("temperature", INF),
        ("temperature", -INF), ("temperature", "hot"), ("temperature", None), ("top_k", -1), ("top_k", (1 << 31) + 1),
        ("top_p", 0.0), ("top_p", -0.1), ("top_p", 1.0001), ("top_p", NAN), ("top_p", INF), ("top_p", 1e-60),
        ("min_p", -0.1), ("min_p", 1.0001), ("min_p", NAN), ("min_p", INF), ("seed", -1), ("seed", 2**64),
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_refused_with_its_name_and_value(field: str, value: object):
    with pytest.raises(ParameterError) as refused:
        SamplingParams(**{field: value})
    assert field in str(refused.value)
    assert refused.value.hint
    assert not refused.value.retryable


@given(st.floats(0, 100), st.integers(0, 1 << 31), st.floats(1e-30, 1.0), st.floats(0, 1), st.integers(0, 2**64 - 1))
def test_reals_are_rounded_to_float32_and_travel_unchanged(t: float, k: int, p: float, m: float, seed: int):
    params = SamplingParams(t, k, p, m, seed)
    assert (params.temperature, params.top_p, params.min_p) == tuple(float(np.float32(x)) for x in (t, p, m))
    assert sampling_from_wire(pb.Sampling.FromString(sampling_to_wire(params).SerializeToString())) == params


def test_a_message_without_values_is_greedy_and_unfiltered():
    params = sampling_from_wire(pb.Sampling())
    assert params == SamplingParams()
    assert params.greedy
    assert not params.filtered


def test_a_top_p_of_zero_on_the_wire_is_refused_and_not_taken_for_absent():
    with pytest.raises(ParameterError, match="top_p"):
        sampling_from_wire(pb.Sampling(top_p=0.0))


@pytest.mark.parametrize(
    ("params", "greedy", "filtered"),
    [
        (SamplingParams(), True, False),
        (SamplingParams(1e-60), True, False),  # rounds to zero
        (SamplingParams(1e-40), False, False),  # a subnormal float32 does not
        (SamplingParams(0.7, top_k=1), False, True),
        (SamplingParams(0.7, top_p=0.999), False, True),
        (SamplingParams(0.7, min_p=0.01), False, True),
        (SamplingParams(0.7, top_p=1 - 1e-12), False, False),  # rounds to one
    ],
)
def test_greedy_and_filtered_follow_the_rounded_values(params: SamplingParams, greedy: bool, filtered: bool):
    assert (params.greedy, params.filtered) == (greedy, filtered)


def test_parameters_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SamplingParams().seed = 3
