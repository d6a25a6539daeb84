"""The listener of `outrider bench padding` names what it can tell apart, and guesses where it cannot."""

from __future__ import annotations

import pytest

from outrider_edge.bench.padding import PaddedAnswer, figures_of, identified


@pytest.mark.parametrize(("known", "heard", "share"), [
    ([((1, 2, 3),), ((9, 9),)], [((1, 2, 4),), ((9, 8),)], 1.0),  # nearest, though not equal
    ([((1, 2, 3),), ((9, 9),)], [((9, 9),), ((1, 2, 3),)], 0.0),
    ([((5, 5),), ((5, 5),), ((5, 5),), ((5, 5),)], [((5, 5),)] * 4, 0.25),  # no better than chance
    ([((5, 5),), ((5, 5, 5),)], [((5, 5),), ((5, 5, 5),)], 1.0),  # by how many there are
])  # fmt: skip
def test_requests_are_named_by_the_sizes_of_their_records(known, heard, share):
    assert identified(known, heard) == share


def test_figures_count_every_byte_and_compare_with_the_first_setting():
    off = [[PaddedAnswer([1, 2], 0.1, 1.0, (10,), (20, 30))], [PaddedAnswer([1, 2], 0.1, 1.0, (10,), (20, 30))]]
    slow = [[PaddedAnswer([1, 2], 0.3, 2.0, (64,), (64, 64))], [PaddedAnswer([1, 3], 0.3, 2.0, (64,), (64, 64))]]
    figures = figures_of(slow, off)
    assert (figures["up_bytes_per_token"], figures["down_bytes_per_token"]) == (32.0, 64.0)
    assert (figures["tokens_per_s"], figures["speed"], figures["ttft_ms"]) == (1.0, 0.5, 300.0)
    assert not figures["identical"]
    assert figures_of(off, off)["identical"]
