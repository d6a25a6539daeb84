"""Whether a stage is bad, and if so, why, in a sentence for the operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_cloud.fleet.rollout.states import MemberState
from outrider_shared.fleet.messages import LATENCY_EDGES_MS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outrider_cloud.fleet.rollout.evidence import Evidence
    from outrider_cloud.fleet.rollout.spec import Gates


@dataclass(frozen=True, slots=True)
class Breach:
    """Which gate was broken and how."""

    gate: str
    reason: str


def broken(
    gates: Gates, counts: Mapping[MemberState, int], evidence: Evidence | None, *, whole: bool = False
) -> Breach | None:
    """The first broken gate of a stage with these devices, or None; `whole` says that all of them have ended."""
    return _failed(gates, counts, whole=whole) or (_metrics(gates, evidence) if evidence is not None else None)


def _failed(gates: Gates, counts: Mapping[MemberState, int], *, whole: bool) -> Breach | None:
    bad = counts.get(MemberState.FAILED, 0) + counts.get(MemberState.REJECTED, 0)
    silent = counts.get(MemberState.TIMED_OUT, 0)
    ended = bad + silent + counts.get(MemberState.COMMITTED, 0)
    if not ended or (ended < gates.min_executed and not whole):
        return None
    if bad / ended > gates.max_failed:
        return Breach("failed", f"{bad} of {ended} devices failed or went back, more than {gates.max_failed:.0%}")
    if silent / ended > gates.max_silent:
        return Breach("silent", f"{silent} of {ended} devices went silent, more than {gates.max_silent:.0%}")
    return None


def _metrics(gates: Gates, evidence: Evidence) -> Breach | None:
    test = evidence.acceptance
    if gates.acceptance and test.alarmed:
        return Breach(
            "acceptance",
            f"the acceptance rate is {100 * test.mean_loss:.1f} points below control's over {test.pairs} pairs of "
            f"windows (p {test.p_value:.2g}, tolerated {100 * test.margin:.1f})",
        )
    test = evidence.latency
    if gates.latency and test.alarmed:
        return Breach(
            "latency",
            f"{100 * test.mean_loss:.1f} % more answers than control's took over {_edge_ms(evidence.reference):g} ms "
            f"per token, over {test.pairs} pairs of windows (p {test.p_value:.2g}, tolerated "
            f"{100 * test.margin:.1f} %)",
        )
    return None


def _edge_ms(bucket: int) -> float:
    return LATENCY_EDGES_MS[min(bucket, len(LATENCY_EDGES_MS) - 1)]
