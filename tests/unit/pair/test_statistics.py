"""Intervals, ranks, curves."""

from __future__ import annotations

import numpy as np
import pytest

from outrider_pair.statistics import auc, compare_ratios, prior_of, ratio_interval, reliability
from outrider_shared.calibration import Calibration


def test_the_interval_of_a_ratio_covers_it_as_often_as_it_says():
    """200 samples of 40 requests from a population whose ratio is known."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        steps = generator.integers(3, 12, 40)
        low, high = ratio_interval(steps * 3 + generator.normal(0, 4, 40), steps)
        covered += low <= 3 <= high
    assert 180 <= covered <= 199


def test_a_ratio_of_ratios_is_paired():
    """The same requests on both sides differ by exactly the factor, however much they vary among themselves."""
    tokens, steps = [10.0, 40.0, 5.0, 90.0], [2.0, 6.0, 3.0, 11.0]
    ratio, low, high = compare_ratios(([0.98 * t for t in tokens], steps), (tokens, steps))
    assert (ratio, low, high) == (pytest.approx(0.98),) * 3


def test_auc_counts_ordered_pairs():
    assert auc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert auc([1, 1, 1, 1], [False, True, False, True]) == 0.5
    assert auc([1, 2, 3], [True, False, True]) == 0.5
    assert auc([1, 2], [True, True]) is None


def test_a_prior_never_falls_and_serves_a_calibration():
    generator = np.random.default_rng(1)
    margins = generator.exponential(2, 3000)
    hits = generator.random(3000) < 1 - 0.6 * np.exp(-margins)
    prior = prior_of(reliability(margins, hits))
    survivals = [survival for _, survival in prior]
    assert survivals == sorted(survivals)
    assert 0 < survivals[0] < survivals[-1] < 1
    believed = Calibration(prior)
    for margin in (0.3, 1.0, 3.0):
        assert believed.survival_of(margin) == pytest.approx(1 - 0.6 * np.exp(-margin), abs=0.06)


def test_pooled_neighbours_keep_their_hits():
    curve = [{"margin": 1, "survival": 0.6, "places": 100}, {"margin": 2, "survival": 0.4, "places": 100}]
    assert prior_of(curve) == ((1.5, 101 / 202),)
