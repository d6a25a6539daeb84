"""The interval of a ratio: what is drawn anew, and in which pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.bench.doubt import interval

times = st.floats(0.5, 2.0)


@given(st.lists(st.lists(st.tuples(times, times), min_size=3, max_size=3), min_size=1, max_size=4))
def test_it_holds_the_ratio_of_all_and_lies_within_those_of_each(rounds):
    above, below = ([[pair[side] for pair in pairs] for pairs in rounds] for side in (0, 1))
    low, high = interval(above, below)
    each = [a / b for pairs in rounds for a, b in pairs]
    assert min(each) - 1e-9 <= low <= high <= max(each) + 1e-9


def test_pairs_stay_together():
    """What both have in common, such as a long request or a slow round, is no doubt about their ratio."""
    below = [[1.0, 5.0, 0.2], [30.0, 2.0, 7.0]]
    assert interval([[2 * one for one in row] for row in below], below) == pytest.approx((2.0, 2.0))


def test_rounds_are_drawn_as_wholes():
    """A round that went another way makes the ratio doubtful, however alike its devices are."""
    low, high = interval([[1.0] * 50, [2.0] * 50], [[1.0] * 50, [1.0] * 50])
    assert (low, high) == pytest.approx((1.0, 2.0))
