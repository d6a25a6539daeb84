"""Plots of a result that was written earlier."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from outrider_edge.bench.plots import plots
from outrider_shared.errors import ConfigError


def result(**figures) -> str:
    cells = [
        {"link": {"rtt_ms": rtt}, "methods": dict.fromkeys(("plain", "ours-auto", "chain-4"), figures)}
        for rtt in (0, 50)
    ]
    return json.dumps({"engines": [{"engine": "paced, 25 ms a step", "cells": cells}]})


def test_each_metric_that_a_result_has_becomes_a_plot(tmp_path):
    """One SVG per metric, with a line for each method but the fixed lengths of synchronous speculation."""
    pytest.importorskip("matplotlib")
    (tmp_path / "link.json").write_text(result(tokens_per_s=40.0, up_bytes_per_token=9.0))
    done = CliRunner().invoke(plots, [str(tmp_path / "link.json"), "--out", str(tmp_path / "plots")])
    assert done.exception is None, done.output
    drawn = {file.name: file.read_text() for file in (tmp_path / "plots").iterdir()}
    assert drawn.keys() == {"tokens_per_s.svg", "up_bytes_per_token.svg"}
    assert all(text.count("<svg") == 1 and "chain-4" not in text for text in drawn.values())


@pytest.mark.parametrize("text", ["", "{}", '{"engines": [{}]}', "[1]"])
def test_a_file_that_is_no_result_is_refused(tmp_path, text):
    pytest.importorskip("matplotlib")
    (tmp_path / "link.json").write_text(text)
    done = CliRunner().invoke(plots, [str(tmp_path / "link.json"), "--out", str(tmp_path / "plots")])
    assert isinstance(done.exception, ConfigError)
    assert "no result" in str(done.exception)
