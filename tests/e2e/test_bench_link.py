"""`outrider bench link` as a user runs it, on the smallest grid: real processes, real sockets, the bundled pair."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
# Of that request most drafts are refused: from 60 ms away the edge is late, and the draft model in the cloud is not.
SMALL = [
    "--rtt",
    "0,60",
    "--step-ms",
    "20",
    "--skip",
    "5",
    "--count",
    "1",
    "--tune",
    "1",
    "--lengths",
    "1",
    "--max-tokens",
    "40",
]


def bench(*flags: str, module: str = "outrider_edge.bench.cli") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *flags]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=240, check=False)


BEYOND = ["--sessions", "2", "--answers", "1", "--rounds", "2", "--row-budget", "48", "--stalls", "0,100"]


@pytest.mark.parametrize("more", [BEYOND, ["--tls"]], ids=["plaintext", "tls"])
def test_all_methods_answer_alike_and_every_figure_is_there(tmp_path, more):
    """Every method gives the plain text in every cell; ratios to all baselines; the command that made it."""
    done = bench(*SMALL, *more, "--json", "--out", str(tmp_path / "result.json"))
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert result["command"].startswith("outrider bench link --rtt 0,60 ")
    (engine,) = result["engines"]
    assert engine["engine"].startswith("paced, 20 ms")
    assert [cell["link"]["rtt_ms"] for cell in engine["cells"]] == [0, 60]
    for cell in engine["cells"]:
        figures = cell["methods"]
        assert {
            "plain",
            "colocated",
            "sync",
            "ours-ahead",
            "ours-hold",
            "ours-auto",
            "ours-auto+draft",
        } <= figures.keys()
        for name, figure in figures.items():
            assert figure["identical_to_plain"], name
            assert cell["ratios"][name].keys() == {"plain", "colocated", "sync"}
            assert figure["down_bytes_with_prompt_per_token"] > 0
        # One commit may cost no more than the one-token answer that is taken off; twelve commits do.
        assert figures["plain"]["down_bytes_per_token"] > 0
        assert figures["plain"]["cloud_steps_per_token"] == 1.0
        assert figures["plain"]["wasted_drafts_per_token"] == 0
        assert figures["plain"]["cloud_busy_ms_per_token"] >= 20.0
        assert figures["colocated"]["cloud_steps_per_token"] <= 1.0
    helped = [cell["methods"][name] for cell in engine["cells"] for name in ("ours-ahead+draft", "ours-auto+draft")]
    # Next door a device may be first with every draft; 60 ms away it cannot be, once its first burst is used up.
    assert sum(figure["tokens_by_origin"]["cloud draft"] for figure in helped) > 0
    expect_verdicts(result["verdicts"], beyond=more is BEYOND)
    if more is BEYOND:
        expect_beyond(engine)


def expect_verdicts(verdicts, *, beyond):
    """Each bar has its worst cell and says whether it was reached; in so small a run that is luck, but for the text."""
    for verdict in verdicts:
        assert verdict["reached"] == (verdict["held"] == verdict["cells"]) == (not verdict["missed"])
        assert verdict["worst"] > 0
    bars = {verdict["bar"]: verdict for verdict in verdicts}
    assert bars["ahead: tokens/s of plain streaming"]["cells"] == 2
    assert "interval" not in bars["ahead: tokens/s of plain streaming"], "one request tells of no doubt"
    assert bars["the text of plain streaming, in parts of the cells"]["reached"]
    assert any(bar.startswith("many devices") for bar in bars) == beyond
    assert ("a dead link is told, s after it died" in bars) == beyond


def expect_beyond(engine):
    """Two devices at once give every method's text; a dead link is told, and what was drafted alone is settled."""
    assert [(load["sessions"], load["link"]["rtt_ms"]) for load in engine["high_load"]] == [(2, 0), (2, 60)]
    for load in engine["high_load"]:
        for name, figure in load["methods"].items():
            assert figure["identical_to_plain"], name
            assert figure["cloud_busy_ms_per_token"] > 0
            assert figure["engine_step_ms"] >= 20.0
            assert [len(devices) for devices in figure["busy_ms"]] == [2, 2]
    modes = engine["dead_link"]["modes"]
    assert modes["error"]["error"] == "unavailable"
    for mode in modes.values():
        assert mode["told_s"] >= mode["offline_after_s"] - 0.5
        assert mode["identical_to_plain"] in {True, None}
    assert modes["wait"]["identical_to_plain"]
    assert modes["wait"]["unverified_tokens"] == 0
    draft = modes["draft"]
    assert draft["identical_to_plain"]
    assert draft["later_verified"] + draft["later_retracted"] == draft["unverified_tokens"]


def test_wrong_lists_end_with_a_sentence():
    """A list that holds no number, requests that are all skipped, no devices: status 2, no traceback."""
    for wrong in (["--rtt", "0,fast"], ["--skip", "100000"], ["--sessions", "0"]):
        done = bench(*wrong)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


def test_padding_is_measured_with_the_same_text():
    """Both settings give one text; what a listener hears of the padded one is of far fewer sizes, and more bytes."""
    small = ["--count", "2", "--max-tokens", "16", "--step-ms", "5", "--rtt", "5", "--settings", "off,256/20ms"]
    done = bench(*small, "--json", module="outrider_edge.bench.padding")
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert figures["off"]["speed"] == 1.0
    assert all(figure["identical"] for figure in figures.values())
    assert figures["256/20ms"]["down_bytes_per_token"] > figures["off"]["down_bytes_per_token"] > 0
    assert 0.0 <= figures["256/20ms"]["identified"] <= 1.0
