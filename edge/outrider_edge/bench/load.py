"""High load: as many devices at once as one likes, each with one answer after the other.

They share this process and its draft threads, so on a small machine drafts come later than from devices of their own.
The cloud's busy time per token is the engine's own account.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from outrider_edge.bench.summary import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outrider_edge.bench.measure import Contestant
    from outrider_edge.report import AnswerReport
    from outrider_edge.session.events import GenerateRequest

# Answers of each device.
_EACH = 2


async def loaded(
    contestants: Mapping[str, Contestant], requests: Sequence[GenerateRequest], sessions: int
) -> dict[str, dict[str, Any]]:
    """Figures of each method with that many devices at once.

    Args:
        contestants: By name; `plain` is what texts are compared with.
        requests: Device d asks number d, then d + `sessions`, and so on, all over again if they are fewer.
        sessions: How many devices.
    """
    texts: dict[str, list[list[int]]] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name, contestant in contestants.items():
        drafted_s = contestant.relayed_s()
        started = time.perf_counter()
        devices = (_device(contestant, requests, number, sessions) for number in range(sessions))
        reports = [report for one in await asyncio.gather(*devices) for report in one]
        wall_s = time.perf_counter() - started
        texts[name] = [report.token_ids for report in reports]
        figures[name] = _figures(reports, wall_s, contestant.relayed_s() - drafted_s)
        figures[name]["identical_to_plain"] = texts[name] == texts["plain"]
    return figures


async def _device(
    contestant: Contestant, requests: Sequence[GenerateRequest], number: int, sessions: int
) -> list[AnswerReport]:
    asked = (requests[(number + turn * sessions) % len(requests)] for turn in range(_EACH))
    return [await contestant.report(request) for request in asked]


def _figures(reports: Sequence[AnswerReport], wall_s: float, relay_draft_s: float) -> dict[str, Any]:
    tokens = sum(len(report.token_ids) for report in reports)
    totals = [report.finished.totals for report in reports]
    rates = [len(report.token_ids) / report.wall_s for report in reports]
    return {
        "tokens": tokens,
        "aggregate_tokens_per_s": tokens / wall_s,
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
    }
