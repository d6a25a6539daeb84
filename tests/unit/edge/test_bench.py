"""The figures of the link benchmark: what is compared, and how samples become a cell."""

from __future__ import annotations

import pytest

from outrider_edge.bench import methods
from outrider_edge.bench.measure import Sample
from outrider_edge.bench.saved import Saved
from outrider_edge.bench.summary import percentile, ratios, step_seconds, summarise
from outrider_edge.session.events import Pace
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.errors import ConfigError


def sample(tokens: int, wall_s: float, **more) -> Sample:
    fields = {
        "token_ids": list(range(tokens)), "ttft_s": 0.1, "wall_s": wall_s, "up_bytes": 300, "down_bytes": 500,
        "steps": tokens, "rows": tokens, "drafted": 0, "accepted": 0, "draft_s": 0.0, "cloud_cpu_s": None,
        "own_accepted": (0, 0), "own_rows": (0, 0), "busy_s": 0.0,
    }  # fmt: skip
    return Sample(**{**fields, **more})


def test_every_pace_and_every_length_is_compared():
    """All paces of the product are methods by name, as are chains of one to eight; names find them again."""
    names = [how.name for how in methods.drafted()]
    assert names == [
        *(f"chain-{k}" for k in range(1, 9)),
        *(f"ours-{p.value}" for p in Pace),
        *(f"ours-{p.value}-alone" for p in Pace),
    ]
    assert [how.name for how in methods.ours_with_draft()] == [f"ours-{p.value}+draft" for p in Pace]
    assert all(how.draft_cloud and how.cloud_drafts for how in methods.ours_with_draft())
    assert [methods.method(name).name for name in names] == names
    assert not methods.method("plain").drafts
    with pytest.raises(ConfigError, match="chain-9"):
        methods.method("chain-9")


def test_synchronous_chains_wait_for_their_commit():
    """A chain has a fixed length, no siblings, one message, and nothing is drafted ahead of its commit."""
    how = methods.chain(5)
    assert (how.policy.depth, how.policy.width, how.policy.bursts_ahead) == (5, 1, 0)
    assert how.policy.stop_survival == 0.0
    assert how.pace is Pace.HOLD


def test_rates_and_costs_are_per_token_over_all_requests():
    """Two answers of 10 and 30 tokens: totals over totals, percentiles over answers, bytes without the openings."""
    samples = [
        sample(10, 1.0, steps=4, rows=12, drafted=8, accepted=6, draft_s=0.2, cloud_cpu_s=0.1, up_bytes=340,
               busy_s=0.1, own_accepted=(1, 2), own_rows=(2, 4)),
        sample(30, 1.0, steps=12, rows=36, drafted=24, accepted=18, draft_s=0.6, cloud_cpu_s=0.3, up_bytes=640,
               busy_s=0.3),
    ]  # fmt: skip
    openings = [sample(1, 0.1, up_bytes=300, down_bytes=120)] * 2
    plain = [sample(10, 2.0), sample(30, 2.0)]
    figures = summarise(samples, openings, plain)
    assert figures["tokens_per_s"] == 20
    assert (figures["tokens_per_s_p50"], figures["tokens_per_s_p95"]) == (20, 29)
    assert figures["cloud_steps_per_token"] == 0.4
    assert figures["cloud_rows_per_token"] == 1.2
    assert figures["cloud_busy_ms_per_token"] == pytest.approx(10)
    assert figures["cloud_cpu_ms_per_token"] == pytest.approx(10)
    assert figures["up_bytes_per_token"] == pytest.approx(380 / 38)
    assert figures["down_bytes_per_token"] == pytest.approx(760 / 38)
    assert figures["wasted_drafts_per_token"] == pytest.approx(8 / 40)
    assert figures["acceptance"] == 0.75
    assert figures["cloud_lookup_rows_per_token"] == 2 / 40
    assert figures["cloud_draft_rows_per_token"] == 4 / 40
    assert figures["tokens_by_origin"] == {"edge": 24, "cloud lookup": 1, "cloud draft": 2}
    assert figures["identical_to_plain"]
    beside = summarise(samples, openings, plain, drafts_in_cloud=True)
    assert beside["cloud_busy_ms_per_token"] == pytest.approx(10 + 20)


def test_other_text_is_told():
    """One differing token in one answer is enough."""
    other = sample(10, 1.0, token_ids=[*range(9), 77])
    assert not summarise([other], [sample(1, 0.1)], [sample(10, 1.0)])["identical_to_plain"]


def test_ratios_are_to_the_baselines_of_the_same_cell():
    """Each method over plain, co-located and synchronous."""
    rates = {"plain": 10.0, "colocated": 40.0, "sync": 20.0, "ours-ahead": 30.0}
    result = ratios({name: {"tokens_per_s": rate} for name, rate in rates.items()})
    assert result["ours-ahead"] == {"plain": 3.0, "colocated": 0.75, "sync": 1.5}
    assert result["plain"]["plain"] == 1.0


def test_step_time_is_the_time_between_plain_tokens():
    """Median over answers of the time behind the first token, per further token."""
    assert step_seconds([sample(11, 1.1), sample(11, 2.1), sample(11, 0.6)]) == pytest.approx(0.1)


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path):
    """Cells and loads are kept as they are done, a half-written engine has them; other settings are refused."""
    file, near, far = tmp_path / "kept.jsonl", LinkProfile(0.01), LinkProfile(0.1)
    first = Saved(file, {"count": 2})
    first.keep(25.0, near, {"tokens": 1})
    again = Saved(file, {"count": 2})
    assert again.cell(25.0, near) == {"tokens": 1}
    assert again.cell(25.0, far) is None
    assert again.cell(10.0, near) is None
    again.keep(25.0, far, {"tokens": 2})
    again.keep_load(25.0, far, 4, {"sessions": 4})
    assert not again.is_whole(25.0)
    again.keep_engine(25.0, {"engine": "paced"})
    assert Saved(file, {"count": 2}).engine(25.0, [near, far]) == {
        "engine": "paced", "cells": [{"tokens": 1}, {"tokens": 2}],
    }  # fmt: skip
    kept = Saved(file, {"count": 2})
    assert kept.is_whole(25.0)
    assert kept.load(25.0, far, 4) == {"sessions": 4}
    assert kept.load(25.0, far, 16) is None
    assert kept.load(25.0, near, 4) is None
    with pytest.raises(ConfigError, match="other settings"):
        Saved(file, {"count": 3})


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 2.5), (95, 3.85), (100, 4)])
def test_percentiles_are_interpolated(percent, value):
    """As numpy's default does."""
    assert percentile([4, 1, 3, 2], percent) == pytest.approx(value)
