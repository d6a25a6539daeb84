"""Measurements of the link and the daemon, ended by SIGTERM in the middle: no process and no file stays."""

from __future__ import annotations

import pytest

from support.ended import ended_in_the_middle

RUNS = {"link": ["cli"], "padding": ["padding"], "daemon": ["daemon", "daemon"]}


@pytest.mark.parametrize("name", RUNS)
def test_ended_in_the_middle_it_leaves_nothing_behind(tmp_path, name):
    """While its cloud starts, or serves already."""
    module, *verb = RUNS[name]
    ended_in_the_middle(tmp_path, [f"outrider_edge.bench.{module}", *verb], 2)
