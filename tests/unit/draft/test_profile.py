"""Choosing a pack on the device."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner

from outrider_edge.cli import edge
from outrider_edge.draft import timing
from outrider_edge.draft.profile import Acceptance, chosen_pack, expected_rate
from outrider_edge.draft.timing import pass_times, seconds_for
from outrider_shared.drafting.runtime import DraftModel
from outrider_shared.errors import ConfigError
from outrider_shared.packs import bundled_pack, read_pack, write_manifest


def test_the_rate_counts_draft_time_and_the_clouds_share():
    """0.8 passes of one row and 0.2 of two, 4 tokens a step: 1 / (0.8 ms + 0.4 ms + 20 ms / 4)."""
    draft_s, rate = expected_rate(Acceptance(4.0, {1: 0.8, 2: 0.2}), {1: 1e-3, 2: 2e-3}, 20e-3)
    assert draft_s == pytest.approx(1.2e-3)
    assert rate == pytest.approx(1 / 6.2e-3)


def test_passes_between_and_beyond_the_measured_rows_are_on_the_line():
    times = {1: 1.0, 2: 1.5, 4: 2.0, 8: 4.0}
    assert seconds_for(3, times) == pytest.approx(1.75)
    assert seconds_for(10, times) == pytest.approx(5.0)


def test_every_pass_is_timed_over_the_same_context(monkeypatch):
    """More repeats than the context has slots: none of them takes a slot away."""
    held = []

    class Recorded:
        def __init__(self, runtime) -> None:
            self._runtime = runtime

        def __getattr__(self, name):
            return getattr(self._runtime, name)

        def forward(self, tokens, **more):
            held.append(self._runtime.length)
            return self._runtime.forward(tokens, **more)

    fill = timing._filled
    monkeypatch.setattr(timing, "_filled", lambda *given: Recorded(fill(*given)))
    (times,) = pass_times([DraftModel.load(bundled_pack())], rows=(1, 3), context=4, repeats=6)
    assert set(held) == {4}
    assert times.keys() == {1, 3}


def test_the_choice_is_kept_with_its_numbers_and_can_be_followed(tmp_path):
    """Two packs with the same weights, one of which is accepted less: the other is chosen on any machine."""
    better, worse = (shutil.copytree(bundled_pack(), tmp_path / name) for name in ("better", "worse"))
    for folder, tokens_per_step in ((better, 6.0), (worse, 1.5)):
        manifest = read_pack(folder).manifest
        cell = {"shape": "tree", "temperature": 0.0, "tokens_per_step": tokens_per_step, "passes_per_token": {"1": 1.0}}
        manifest.evaluation["pair"] = {"acceptance": [cell]}
        write_manifest(folder, manifest)
    out = tmp_path / "choice.json"
    ran = CliRunner().invoke(
        edge, ["profile", str(worse), str(better), "--repeats", "2", "--step-ms", "500", "--out", str(out), "--json"]
    )
    told = json.loads(ran.stdout)
    assert told["pack"] == str(better)
    assert [c["tokens_per_step"] for c in told["candidates"]] == [6.0, 1.5]
    assert set(told["candidates"][0]["pass_us"]) == {"1", "2", "4", "8"}
    assert chosen_pack(out) == better


def test_a_pack_without_figures_and_a_file_that_is_no_profile_are_refused(tmp_path):
    bare = shutil.copytree(bundled_pack(), tmp_path / "bare")
    manifest = read_pack(bare).manifest
    manifest.evaluation.pop("pair", None)
    write_manifest(bare, manifest)
    ran = CliRunner().invoke(edge, ["profile", str(bare)])
    assert ran.exit_code == 2
    assert "no measured acceptance" in ran.output
    assert "train eval" in ran.output
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no profile"):
        chosen_pack(tmp_path / "other.json")
