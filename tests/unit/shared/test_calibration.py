"""Margin to survival: a prior that evidence corrects."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.calibration import LOOKUP_PRIOR, NEXT_SHARE_PRIOR, PRIOR, Calibration, Calibrations
from outrider_shared.sampling.rule import Guess


def test_prior_is_returned_before_any_evidence():
    """At its own margins a fresh calibration gives the prior, and beyond its ends the nearest value."""
    fresh = Calibration()
    assert fresh.pairs() == [pytest.approx(pair) for pair in PRIOR]
    assert fresh.survival_of(-1.0) == pytest.approx(PRIOR[0][1])
    assert fresh.survival_of(99.0) == pytest.approx(PRIOR[-1][1])


@given(margin=st.floats(0.0, 8.0))
def test_survival_between_two_margins_lies_between_their_survivals(margin):
    """Interpolation stays between its neighbours."""
    fresh = Calibration()
    below = max(s for m, s in PRIOR if m <= margin)
    above = min((s for m, s in PRIOR if m >= margin), default=PRIOR[-1][1])
    assert min(below, above) - 1e-12 <= fresh.survival_of(margin) <= max(below, above) + 1e-12


def test_evidence_pulls_the_estimate_to_the_observed_rate():
    """After some hundred guesses the estimate is the rate, whatever the prior said."""
    calibration, chance = Calibration(), random.Random(1)
    for _ in range(600):
        calibration.observe(1.0, hit=chance.random() < 0.3)
    assert calibration.survival_of(1.0) == pytest.approx(0.3, abs=0.1)
    assert calibration.survival_of(8.0) == pytest.approx(PRIOR[-1][1])


def test_new_evidence_outweighs_old():
    """When agreement collapses, the estimate follows within a few hundred guesses."""
    calibration = Calibration()
    for _ in range(5000):
        calibration.observe(2.0, hit=True)
    for _ in range(400):
        calibration.observe(2.0, hit=False)
    assert calibration.survival_of(2.0) < 0.25


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=300))
def test_survival_is_always_a_probability(observations):
    """No sequence of observations drives an estimate out of (0, 1)."""
    calibration = Calibration()
    for margin, hit in observations:
        calibration.observe(margin, hit=hit)
    assert all(0.0 < survival < 1.0 for _, survival in calibration.pairs())


def test_kinds_of_drafters_learn_apart():
    """What lookup got wrong says nothing about the model, and a kind nobody foresaw starts from the model's prior."""
    calibrations = Calibrations()
    quoted = Guess((1,), (0.0,), 4.0, "lookup")
    before = calibrations.survival_of(quoted)
    for _ in range(200):
        calibrations.observe(quoted, hit=False)
    assert before == pytest.approx(dict(LOOKUP_PRIOR)[4.0])
    assert calibrations.survival_of(quoted) < 0.1
    assert calibrations.of("model").pairs() == Calibration().pairs()
    assert calibrations.survival_of(Guess((1,), (0.0,), 0.0, "other")) == pytest.approx(PRIOR[0][1])


def test_depths_learn_apart_and_start_from_what_is_known_of_the_margin():
    """A depth without evidence has its margin's estimate; one with evidence goes its own way, and its group with it."""
    calibrations = Calibrations()
    near = Guess((1, 2), (0.0, 1.0), 1.0)
    assert calibrations.survival_of(near, 9) == pytest.approx(calibrations.survival_of(near))
    for _ in range(300):
        calibrations.learn(near, 1, 1)
        calibrations.learn(near, 5, 9)
    assert calibrations.survival_of(near, 1) > 0.9
    assert calibrations.survival_of(near, 12) < 0.15
    assert 0.3 < calibrations.survival_of(near) < 0.7


def test_second_candidates_learn_their_share_of_what_the_best_leaves():
    """Of what the best leaves the second takes what it was seen to take; all together never exceed 1."""
    calibrations = Calibrations()
    told = Guess((1, 2, 3), (0.0, 1.0, 1.0), 0.0)
    first, second, third = calibrations.survivals_of(told)
    assert second == pytest.approx((1 - first) * NEXT_SHARE_PRIOR)
    for _ in range(300):
        calibrations.learn(told, 3, 1)
    first, second, third = calibrations.survivals_of(told)
    assert third > 5 * second
    assert first + second + third < 1.0
