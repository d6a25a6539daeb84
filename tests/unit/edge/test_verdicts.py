"""Which bars a run of `outrider bench link` has reached."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.bench.verdicts import verdicts


def figure(speed: float = 10.0, busy: float = 10.0, up: float = 5.0, **more) -> dict:
    return {
        "tokens_per_s": speed,
        "cloud_busy_ms_per_token": busy,
        "up_bytes_per_token": up,
        "down_bytes_per_token": 5.0,
        "identical_to_plain": True,
        **more,
    }


def cell(rtt_ms: float, methods: dict, loss: float = 0.0) -> dict:
    return {"link": {"rtt_ms": rtt_ms, "rate_kbit": 0.0, "loss": loss}, "methods": methods}


def engine(*cells: dict, step_ms: float | None = 25.0, **more) -> dict:
    return {"engine": "an engine", "step_ms": step_ms, "cells": list(cells), **more}


def judged(*engines: dict) -> dict[str, dict]:
    return {verdict["bar"]: verdict for verdict in verdicts(engines)}


AHEAD = "ahead: tokens/s of plain streaming"
AHEAD_NEAR = f"{AHEAD}, round trip up to 50 ms, step from 25 ms"
TEXT = "the text of plain streaming, in parts of the cells"


@given(st.lists(st.floats(1.0, 100.0), min_size=1, max_size=6))
def test_a_bar_is_reached_where_every_cell_reaches_it(speeds: list[float]):
    """The worst cell is told with its figure, and each cell that misses."""
    cells = [cell(200 + n, {"plain": figure(50.0), "ours-ahead": figure(s)}) for n, s in enumerate(speeds)]
    verdict = judged(engine(*cells))[AHEAD]
    assert verdict["worst"] == min(speeds) / 50
    assert verdict["cell"] == f"rtt {200 + speeds.index(min(speeds))} ms, step 25 ms"
    assert verdict["held"] == sum(s / 50 >= 0.98 for s in speeds)
    assert verdict["reached"] == (min(speeds) / 50 >= 0.98)
    assert len(verdict["missed"]) == verdict["cells"] - verdict["held"]


@pytest.mark.parametrize(
    ("walls", "undecided", "low", "high"),
    [
        pytest.param([0.5, 2.0, 1.1, 1.2], True, 0.6, 1.4, id="requests differ"),
        pytest.param([1.25, 1.25, 1.25, 1.25], False, 0.8, 0.8, id="all alike"),
    ],
)
def test_a_miss_is_open_where_the_same_requests_drawn_anew_may_have_reached_the_bar(walls, undecided, low, high):
    base, ours = figure(10.0, walls_s=[1.0] * 4), figure(10.0 * 4 / sum(walls), walls_s=walls)
    verdict = judged(engine(cell(200, {"plain": base, "ours-ahead": ours})))[AHEAD]
    assert not verdict["reached"]
    assert verdict["open"] == (["rtt 200 ms, step 25 ms"] if undecided else [])
    assert verdict["interval"] == pytest.approx([low, high], abs=0.2 if undecided else 1e-9)


def test_a_bar_is_for_its_cells_alone():
    """Near links with slow steps have a higher one; links with stalls none but the text's."""
    methods = {"plain": figure(10.0), "ours-ahead": figure(12.0)}
    assert AHEAD_NEAR not in judged(engine(cell(100, methods)))
    assert AHEAD_NEAR not in judged(engine(cell(0, methods), step_ms=None))
    assert not judged(engine(cell(50, methods)))[AHEAD_NEAR]["reached"]
    stalled = judged(engine(cell(50, methods, loss=0.1)))
    assert stalled.keys() == {TEXT}


def test_another_text_is_told_wherever_it_comes():
    wrong = {"plain": figure(), "ours-ahead": figure(identical_to_plain=False)}
    load = {"sessions": 4, **cell(0, wrong)}
    verdict = judged(engine(cell(0, {"plain": figure()}), cell(10, wrong, loss=0.05), high_load=[load]))[TEXT]
    assert verdict["missed"].keys() == {"rtt 10 ms, 5% stalls, step 25 ms", "4 devices, rtt 0 ms, step 25 ms"}


@pytest.mark.parametrize(("busy", "reached"), [(2.9, True), (3.1, False)])
def test_under_load_co_located_speculation_is_compared_without_its_drafter(busy: float, reached: bool):
    """Its busy time counts the drafter's; what is left is the bar for a cloud whose edges draft."""
    base = figure(busy=4.0, cloud_draft_ms_per_token=1.0)
    load = {"sessions": 4, **cell(0, {"colocated": base, "ours-auto+draft": figure(busy=busy)})}
    found = judged(engine(cell(0, {}), high_load=[load]))
    (verdict,) = [v for bar, v in found.items() if bar.startswith("many devices")]
    assert verdict["reached"] == reached
    assert verdict["worst"] == pytest.approx(busy / 3.0)


@pytest.mark.parametrize(
    ("busy", "undecided"),
    [
        pytest.param([[5.0, 12.0], [9.0, 20.0]], True, id="devices and rounds differ"),
        pytest.param([[12.0, 12.0], [12.0, 12.0]], False, id="all alike"),
    ],
)
def test_a_miss_of_many_devices_is_open_where_rounds_and_devices_drawn_anew_may_have_reached_the_bar(busy, undecided):
    """Ours against the cheaper pace, paired by round and device."""
    base = figure(busy=10.0, busy_ms=[[10.0, 10.0], [10.0, 10.0]])
    ours = figure(busy=sum(map(sum, busy)) / 4, busy_ms=busy)
    methods = {"ours-auto": ours, "ours-ahead": base, "ours-hold": figure(busy=30.0, busy_ms=[[30.0] * 2] * 2)}
    load = {"sessions": 2, **cell(0, methods)}
    verdict = judged(engine(high_load=[load]))["many devices, auto: cloud busy time of the better of ahead and hold"]
    assert not verdict["reached"]
    assert verdict["open"] == (["2 devices, rtt 0 ms, step 25 ms"] if undecided else [])
    low, high = verdict["interval"]
    assert low <= verdict["worst"] <= high
    assert (low < high) == undecided


@pytest.mark.parametrize(("rows", "cells"), [({"rows": 16}, 1), ({"rows": 32}, 2), ({}, 2)])
def test_half_the_cloud_time_is_asked_for_only_where_many_devices_have_four_rows_each(rows, cells):
    """With two rows each it is the limit; a load that does not tell its rows has the cloud's own, which are many."""
    methods = {"ours-hold": figure(busy=6.0), "plain": figure(busy=10.0)}
    loads = [{"sessions": 4, **cell(0, methods), "rows": 16}, {"sessions": 8, **cell(10, methods), **rows}]
    found = judged(engine(high_load=loads))["many devices, hold: cloud busy time of plain streaming"]
    assert (found["cells"], found["held"]) == (cells, 0)


def test_a_dead_link_is_told_in_time_by_every_offline_mode():
    modes = {"error": {"told_s": 1.9, "offline_after_s": 2.0}, "draft": {"told_s": None, "offline_after_s": 2.0}}
    verdict = judged(engine(dead_link={"rtt_ms": 0, "modes": modes}))["a dead link is told, s after it died"]
    assert verdict["missed"].keys() == {"offline draft"}
