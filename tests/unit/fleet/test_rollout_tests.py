"""The sequential test and its evidence: few false alarms however often one looks, and losses found."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_cloud.fleet.bench.gates import Change, Scene, roll_out, upper_bound
from outrider_cloud.fleet.rollout.evidence import (
    Baseline,
    Evidence,
    Window,
    added,
    quantile_bucket,
    slow_edge,
    slow_share,
)
from outrider_cloud.fleet.rollout.sequential import BettingTest
from outrider_cloud.fleet.rollout.spec import Gates
from outrider_shared.errors import ConfigError


def alarms(loss: float, runs: int, pairs: int = 300, alpha: float = 0.05) -> int:
    rng, found = random.Random(7), 0
    for _ in range(runs):
        test = BettingTest(alpha)
        for _ in range(pairs):
            test.observe(rng.gauss(0.8 - loss, 0.05), rng.gauss(0.8, 0.05))
            if test.alarmed:
                found += 1
                break
    return found


def test_looking_after_every_pair_raises_few_false_alarms():
    assert alarms(0.0, runs=200) <= 10 + 3 * math.sqrt(10)


def test_a_loss_is_found():
    assert alarms(0.04, runs=20) == 20


def test_a_gain_is_never_an_alarm():
    assert alarms(-0.03, runs=50) == 0


def test_a_tolerated_loss_is_tolerated():
    rng = random.Random(1)
    test = BettingTest(0.01, margin=0.05)
    for _ in range(500):
        test.observe(rng.gauss(0.77, 0.05), rng.gauss(0.8, 0.05))
    assert not test.alarmed
    assert test.mean_loss == pytest.approx(0.03, abs=0.01)


@given(st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), max_size=60), st.integers(0, 60))
def test_a_test_that_was_saved_goes_on_as_if_it_had_not_been(pairs, cut):
    whole, parts = BettingTest(), BettingTest()
    for index, pair in enumerate(pairs):
        if index == cut:
            parts = BettingTest.load(parts.dump())
        whole.observe(*pair)
        parts.observe(*pair)
    assert whole == parts
    assert 0 < whole.p_value <= 1


@pytest.mark.parametrize("wrong", [{"alpha": 0}, {"alpha": 0.6}, {"margin": -1}, {"scale": 0}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(ConfigError):
        BettingTest(**wrong)


def test_windows_are_compared_with_the_devices_own_past():
    """A device that is worse than others by nature is no loss."""
    rng = random.Random(3)
    weak, strong = Baseline(), Baseline()
    for _ in range(40):
        weak = weak.plus(Window("weak", rng.gauss(0.5, 0.03)))
        strong = strong.plus(Window("strong", rng.gauss(0.9, 0.03)))
    evidence = Evidence(Gates(), {"weak": weak, "strong": strong}, frozenset({"weak"}))
    for _ in range(200):
        evidence.observe(Window("weak", rng.gauss(0.5, 0.03)), canary=True)
        evidence.observe(Window("strong", rng.gauss(0.9, 0.03)), canary=False)
    assert evidence.acceptance.pairs == 200
    assert not evidence.acceptance.alarmed
    assert evidence.acceptance.margin > Gates().acceptance_margin, "the doubt about the baseline is tolerated"


def test_slower_answers_are_found_and_survive_a_restart():
    line = Baseline()
    for _ in range(30):
        line = line.plus(Window("d", 0.8, (0, 50, 3, 0)))
    lines = {"canary": line, "control": line}
    evidence = Evidence(Gates(), lines, frozenset({"canary"}))
    assert evidence.reference == 1, "the last edge with 5 % or more above it"
    for step in range(60):
        evidence.observe(Window("canary", 0.8, (0, 20, 10, 20)), canary=True)
        evidence.observe(Window("control", 0.8, (0, 47, 3, 0)), canary=False)
        if step == 20:
            evidence = Evidence.load(Gates(), lines, evidence.dump())
    assert evidence.latency.alarmed
    assert not evidence.acceptance.alarmed


def test_a_device_without_a_past_and_a_window_without_tokens_take_no_part():
    evidence = Evidence(Gates(), {"new": Baseline(3, 2.4, 2.0)}, frozenset({"new"}))
    evidence.observe(Window.of("new", (100,), (80,), ()), canary=True)
    assert evidence.dump()["queues"][0][2] == []
    assert Window.of("d", (10,), (9,), ()).acceptance is None


@given(st.lists(st.integers(0, 50), max_size=8), st.lists(st.integers(0, 50), max_size=8))
def test_histograms_add_up(one, other):
    total = added(one, other)
    assert sum(total) == sum(one) + sum(other)
    bucket = quantile_bucket(total, 0.95)
    share = slow_share(total, bucket)
    assert share is None or share <= 0.05 + 1e-9


def test_slow_answers_are_those_beyond_the_edge_before_the_p95_if_that_is_not_most_of_them():
    assert slow_edge((0, 80, 14, 6)) == 2
    assert slow_edge((0, 80, 16, 4)) == 1, "the p95 lies in bucket 2, whose end only 4 % are beyond"
    assert slow_edge((0, 97, 3)) == 1, "beyond bucket 0 lies everything"
    assert slow_edge(()) == 0


@pytest.mark.parametrize(
    ("change", "gate"),
    [(Change("x", 0.2), "acceptance"), (Change("x", slower=1.5), "latency")],
    ids=["acceptance", "latency"],
)
def test_a_simulated_roll_out_of_a_worse_draft_is_caught_and_of_the_same_is_not(change, gate):
    rng = np.random.default_rng(1)
    assert roll_out(Scene(), Gates(), change, 100, rng, gate)[gate] is not None
    assert roll_out(Scene(), Gates(), Change(""), 100, rng) == {"acceptance": None, "latency": None}


def test_an_upper_bound_of_nothing_seen_is_not_nothing():
    assert upper_bound(0, 1000) == pytest.approx(0.0027, abs=1e-4)
    assert upper_bound(10, 1000) == pytest.approx(0.0166, abs=1e-3)
