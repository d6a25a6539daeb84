"""What rank 0 tells comes out as it went in, whatever the step."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.engine.batch import Batch
from outrider_cloud.kernels.layout import Segment
from outrider_cloud.parallel.messages import STOP, Step, decode, encode, stop_message
from outrider_shared.sampling import SamplingParams


@st.composite
def segments(draw):
    context = draw(st.lists(st.integers(0, 4000), max_size=60, unique=True))
    if draw(st.booleans()):
        context.sort()
    rows = draw(st.integers(1, 9))
    parents = [draw(st.integers(-1, row - 1)) for row in range(rows)]
    return Segment(np.array(context, np.int64), np.arange(5000, 5000 + rows), parents)


@st.composite
def steps(draw):
    laid = draw(st.lists(segments(), min_size=1, max_size=4))
    rows = sum(len(s.parents) for s in laid)
    numbers = st.lists(st.integers(0, 150_000), min_size=rows, max_size=rows)
    sampled = sorted(draw(st.sets(st.integers(0, rows - 1))))
    batch = Batch(draw(numbers), draw(numbers), laid, sampled, [0] * len(sampled), [SamplingParams()] * len(sampled))
    moves = draw(st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 4000)), max_size=5))
    sizes = tuple(draw(st.lists(st.integers(1, 512), max_size=4)))
    return Step(batch, draw(st.integers(0, 512)), sizes, [m[0] for m in moves], [m[1] for m in moves])


@given(steps())
def test_steps_survive_the_wire(step):
    """Every field, runs of slots included; the array tells its own length."""
    message = encode(step)
    assert message.dtype == np.int32
    assert message[1] == len(message)
    got = decode(message)
    for one, other in zip(step.batch.segments, got.batch.segments, strict=True):
        assert np.array_equal(one.context, other.context)
        assert np.array_equal(one.slots, other.slots)
        assert one.parents == other.parents
    for name in ("tokens", "positions", "sampled", "choosing", "params"):
        assert getattr(step.batch, name) == getattr(got.batch, name)
    for name in ("bucket", "buckets", "sources", "targets"):
        assert getattr(step, name) == getattr(got, name)


def test_a_stop_is_no_step():
    assert stop_message()[0] == STOP
    assert stop_message()[1] == len(stop_message())


def test_a_long_context_is_told_in_few_numbers():
    """32k tokens in blocks of 16, shuffled: two numbers a block."""
    blocks = np.random.default_rng(0).permutation(4096)[:2048]
    context = (blocks[:, None] * 16 + np.arange(16)).reshape(-1)
    segment = Segment(context, np.array([70_000]), [-1])
    batch = Batch([1], [32_768], [segment], [0], [0], [SamplingParams()])
    assert len(encode(Step(batch, 0, (8,), [], []))) < 2 * 2048 + 32
