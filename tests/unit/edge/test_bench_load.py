"""Many devices at once: who asks what, in which order, and how that becomes figures."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from outrider_edge.bench.load import Crowd, loaded
from outrider_edge.bench.steps import Steps
from outrider_edge.report import AnswerReport
from outrider_edge.session.events import Finished, Totals

REQUESTS = ["a", "b", "c"]


class Told:
    """A method whose answers are known: request x has as many tokens as its place in the alphabet."""

    def __init__(self, name: str, busy_s: float, log: list[tuple[str, str]]) -> None:
        self.name, self.busy_s, self.log, self.asked = name, busy_s, log, 0

    async def report(self, request: str) -> AnswerReport:
        self.log.append((self.name, request))
        self.asked += 1
        await asyncio.sleep(0)
        tokens = list(range(1 + REQUESTS.index(request)))
        return AnswerReport("", tokens, Finished("eos", Totals(cloud_busy_s=self.busy_s, cloud_rows=3)), 0.5, 0.1)

    def relayed_s(self) -> float:
        return 0.25 * self.asked if self.name == "colocated" else 0.0

    async def steps(self) -> Steps:
        return Steps(2 * self.asked, 6 * self.asked, 0.02 * self.asked)


def run(crowd: Crowd):
    log: list[tuple[str, str]] = []
    methods = {name: Told(name, busy, log) for name, busy in {"plain": 0.2, "colocated": 0.1, "ours": 0.05}.items()}
    advanced: list[int] = []
    return asyncio.run(loaded(methods, REQUESTS, crowd, advanced.append)), log, sum(advanced)


def test_each_device_gives_each_method_as_many_answers_in_every_round():
    """Neighbours begin with different requests, and with others in the next round; progress counts each answer."""
    crowd = Crowd(sessions=2, answers=2, rounds=3)
    figures, log, advanced = run(crowd)
    assert advanced == len(log) == 3 * 2 * 2 * 3
    assert Counter(name for name, _ in log) == dict.fromkeys(figures, 12)
    assert [request for name, request in log if name == "ours"][:6] == ["a", "b", "b", "c", "b", "c"]
    assert [len(devices) for devices in figures["ours"]["busy_ms"]] == [2, 2, 2]
    assert all(figure["identical_to_plain"] for figure in figures.values())


def test_another_method_is_first_in_each_round():
    _, log, _ = run(Crowd(sessions=1, answers=1, rounds=4))
    rounds = [[name for name, _ in log[3 * n : 3 * n + 3]] for n in range(4)]
    first = ["plain", "colocated", "ours"]
    assert rounds == [first, ["colocated", "ours", "plain"], ["ours", "plain", "colocated"], first]


def test_costs_are_per_token_over_all_rounds():
    """Two devices, an answer each, a round: a and b, 3 tokens; a drafter beside the cloud counts as busy, too."""
    figures, _, _ = run(Crowd(sessions=2, answers=1, rounds=1))
    ours, colocated = figures["ours"], figures["colocated"]
    assert ours["tokens"] == 3
    assert ours["cloud_busy_ms_per_token"] == pytest.approx(100 / 3)
    assert ours["busy_ms"] == [[50.0, 50.0]]
    assert ours["cloud_rows_per_token"] == pytest.approx(6 / 3)
    assert ours["tokens_per_s_p50"] == pytest.approx((1 + 2) / 2 / 0.5)
    assert colocated["cloud_draft_ms_per_token"] == pytest.approx(500 / 3)
    assert colocated["cloud_busy_ms_per_token"] == pytest.approx((200 + 500) / 3)
    assert colocated["busy_ms"] == [[100.0, 100.0]]
    assert (ours["engine_step_ms"], ours["engine_rows_per_step"]) == pytest.approx((10.0, 3.0))
    assert ours["engine_steps_per_token"] == pytest.approx(4 / 3)


def test_steps_are_read_from_the_page_for_prometheus():
    """Comments, labels and other families aside."""
    page = (
        "# HELP outrider_cloud_steps_total Steps run\noutrider_cloud_steps_total 4.0\noutrider_cloud_rows_total 20.0\n"
        'outrider_cloud_kv_blocks{state="used"} 3.0\noutrider_cloud_step_seconds_total 0.1\n'
    )
    figures = Steps.read(page).figures(tokens=8)
    assert figures == {"engine_steps_per_token": 0.5, "engine_step_ms": pytest.approx(25), "engine_rows_per_step": 5.0}
    assert Steps.read("").figures(tokens=8)["engine_step_ms"] is None
