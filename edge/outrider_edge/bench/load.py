"""High load: as many devices at once as one likes, each with one answer after the other.

Rules:
    * In a round every method gives the same answers; from round to round another one is first, so that a machine that
      grows slower or faster does so for all of them.
    * Device d asks request number d + round first, then the next ones, from the beginning again where they end.
    * What cloud and answers cost is told by device and round, too: doubt is drawn from those (`doubt`).

They share this process and its draft threads, so on a small machine drafts come later than from devices of their own.
The cloud's busy time per token is the engine's own account; steps are those of the whole engine.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_edge.bench.steps import Steps
from outrider_edge.bench.summary import percentile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from outrider_edge.bench.measure import Contestant
    from outrider_edge.report import AnswerReport
    from outrider_edge.session.events import GenerateRequest


@dataclass(frozen=True, slots=True)
class Crowd:
    """How much is asked.

    Attributes:
        sessions: Devices at once.
        answers: Of each of them, by one method in one round.
        rounds: How often all methods are run.
    """

    sessions: int
    answers: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Turn:
    """One method in one round.

    Attributes:
        reports: By device, then in the order of its answers.
        wall_s: Until the last device was through.
        relay_draft_s: Time of a drafter beside the cloud.
        steps: Of the engine.
    """

    reports: list[list[AnswerReport]]
    wall_s: float
    relay_draft_s: float
    steps: Steps


@dataclass(slots=True)
class Turns:
    """A method's turns so far."""

    taken: list[Turn] = field(default_factory=list)

    @property
    def texts(self) -> list[list[int]]:
        """All answers."""
        return [report.token_ids for report in self._reports()]

    def figures(self) -> dict[str, Any]:
        """Over all rounds."""
        reports, steps = self._reports(), sum((turn.steps for turn in self.taken), Steps())
        tokens = sum(len(report.token_ids) for report in reports)
        totals = [report.finished.totals for report in reports]
        rates = [len(report.token_ids) / report.wall_s for report in reports]
        relay_draft_s = sum(turn.relay_draft_s for turn in self.taken)
        return {
            "tokens": tokens,
            "aggregate_tokens_per_s": tokens / sum(turn.wall_s for turn in self.taken),
            "tokens_per_s_p50": percentile(rates, 50),
            "tokens_per_s_p5": percentile(rates, 5),
            "cloud_draft_ms_per_token": 1e3 * relay_draft_s / tokens,
            "cloud_busy_ms_per_token": 1e3 * (sum(t.cloud_busy_s for t in totals) + relay_draft_s) / tokens,
            "cloud_rows_per_token": sum(t.cloud_rows for t in totals) / tokens,
            "tokens_by_origin": {
                "edge": sum(t.accepted for t in totals),
                "cloud lookup": sum(t.cloud_lookups for t in totals),
                "cloud draft": sum(t.cloud_drafts for t in totals),
            },
            **steps.figures(tokens),
            "busy_ms": [[_busy_ms(device) for device in turn.reports] for turn in self.taken],
            "walls_s": [round(turn.wall_s, 3) for turn in self.taken],
        }

    def _reports(self) -> list[AnswerReport]:
        return [report for turn in self.taken for device in turn.reports for report in device]


async def loaded(
    contestants: Mapping[str, Contestant],
    requests: Sequence[GenerateRequest],
    crowd: Crowd,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Figures of each method with that many devices at once.

    Args:
        contestants: By name; `plain` is what texts are compared with.
        requests: What is asked.
        crowd: By how many, and how often.
        advance: Is called with each answer.
    """
    names = list(contestants)
    turns = {name: Turns() for name in names}
    for number in range(crowd.rounds):
        for place in range(len(names)):
            name = names[(place + number) % len(names)]
            turns[name].taken.append(await _turn(contestants[name], requests, crowd, number, advance))
    return {
        name: {**taken.figures(), "identical_to_plain": taken.texts == turns["plain"].texts}
        for name, taken in turns.items()
    }


async def _turn(
    contestant: Contestant,
    requests: Sequence[GenerateRequest],
    crowd: Crowd,
    number: int,
    advance: Callable[[int], None],
) -> Turn:
    async def device(first: int) -> list[AnswerReport]:
        reports = []
        for turn in range(crowd.answers):
            reports.append(await contestant.report(requests[(first + turn) % len(requests)]))
            advance(1)
        return reports

    drafted_s, before = contestant.relayed_s(), await contestant.steps()
    started = time.perf_counter()
    reports = await asyncio.gather(*(device(number + place) for place in range(crowd.sessions)))
    wall_s = time.perf_counter() - started
    return Turn(reports, wall_s, contestant.relayed_s() - drafted_s, await contestant.steps() - before)


def _busy_ms(answers: Sequence[AnswerReport]) -> float:
    return round(1e3 * sum(report.finished.totals.cloud_busy_s for report in answers), 3)
