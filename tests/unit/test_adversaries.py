"""What devices that behave badly take from those that do not, in virtual time: no more than as many good ones would."""

from __future__ import annotations

import functools

import pytest

from outrider_cloud.engine.config import EngineConfig
from outrider_edge.bench import methods
from outrider_edge.bench.methods import Method
from outrider_edge.session.events import Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.emulator.profile import LinkProfile
from support.virtual import Scenario, StepCost, simulate

GOOD, RIVALS = 4, 4
LINK = LinkProfile(0.02)
FLOOD = DraftPolicy(
    depth=64, width=8, stop_survival=0.0, sibling_survival=0.0, bursts_ahead=16, timed=False, adaptive=False
)
BAD = {
    "floods drafts": (Method("flood", Pace.AHEAD, policy=FLOOD), LINK),
    "never drafts": (Method("silent", Pace.AHEAD, drafts=False), LINK),
    "asks to be waited for and never drafts": (Method("idle", Pace.HOLD, drafts=False), LINK),
    "reads and writes slowly": (Method("slow", Pace.AUTO), LinkProfile(1.0, up_bps=2000, down_bps=2000)),
}


@functools.cache
def play(pace: str, rival: str | None) -> dict:
    rivals = (methods.method(f"ours-{pace}"), LINK) if rival is None else BAD[rival]
    return simulate(
        Scenario(
            methods.method(f"ours-{pace}"), LINK, StepCost(0.01, 0.0002), sessions=GOOD, answers=2, cached=True,
            config=EngineConfig(row_budget=32), rivals=(rivals,) * RIVALS,
        )
    )  # fmt: skip


@pytest.mark.parametrize("rival", BAD)
@pytest.mark.parametrize("pace", ["ahead", "hold", "auto"])
def test_bad_devices_cost_good_ones_no_more_than_good_ones_would(pace: str, rival: str):
    """Rows are scarce: eight sessions and 32 rows. The text is the same, and so is the service, within a tenth."""
    good, bad = play(pace, None), play(pace, rival)
    assert bad["texts"] == good["texts"]
    assert bad["tokens_per_s"] >= 0.9 * good["tokens_per_s"]
    assert bad["tokens_per_s_least"] >= 0.75 * good["tokens_per_s_least"]
