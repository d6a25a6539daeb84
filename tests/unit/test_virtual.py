"""Whole sessions in virtual time: the same scenario gives the same figures, and every way of drafting the same text."""

import pytest

from outrider_edge.bench import methods
from outrider_shared.emulator.profile import LinkProfile
from support.virtual import Scenario, StepCost, simulate


def play(name: str, rtt_ms: float = 0.0, step_ms: float = 25.0, **more):
    link = LinkProfile(rtt_ms / 1e3)
    return simulate(Scenario(methods.method(name), link, StepCost(step_ms / 1e3), **{"answers": 4, **more}))


def test_plain_streaming_takes_a_step_per_token_and_one_round_trip():
    figures = play("plain", 50.0)
    steps = figures["tokens"] + 4  # and one for each prompt
    assert figures["steps_per_token"] == 1.0
    assert figures["ttft_ms"] == pytest.approx(50.0 + 25.0, abs=2.0)
    assert figures["busy_ms_per_token"] <= 25.0 * steps / figures["tokens"] + 1e-9


def test_the_same_scenario_gives_the_same_figures():
    first, second = play("ours-auto", 50.0, sessions=3), play("ours-auto", 50.0, sessions=3)
    assert first["tokens_per_s"] == second["tokens_per_s"]
    assert first["up_bytes_per_token"] == second["up_bytes_per_token"]


@pytest.mark.parametrize("name", ["chain-4", "ours-ahead", "ours-hold", "ours-auto"])
def test_every_method_gives_the_same_text(name):
    assert play(name, 25.0)["texts"] == play("plain", 25.0)["texts"]


def test_a_link_that_changes_on_the_way_is_felt():
    slow = LinkProfile(0.2)
    assert play("ours-hold", changes=((0.3, slow),))["tokens_per_s"] < play("ours-hold")["tokens_per_s"]
