"""From samples to the figures of a cell."""

from __future__ import annotations

import operator
import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outrider_edge.bench.measure import Sample

BASELINES = ("plain", "colocated", "sync")


def summarise(
    samples: Sequence[Sample],
    openings: Sequence[Sample],
    plain: Sequence[Sample],
    *,
    drafts_in_cloud: bool = False,
) -> dict[str, Any]:
    """One method's figures over all requests of a cell.

    Args:
        samples: Its answers.
        openings: Answers of one token to the same requests: what the prompt alone costs in bytes.
        plain: The plain answers, for comparison of the text.
        drafts_in_cloud: Whether the drafter keeps the cloud busy, too.
    """
    tokens, steps = sum(len(s.token_ids) for s in samples), sum(s.steps for s in samples)
    beyond_first = max(1, tokens - len(samples))
    drafted, accepted = sum(s.drafted for s in samples), sum(s.accepted for s in samples)
    rates = [len(s.token_ids) / s.wall_s for s in samples]
    decoding_s = sum(s.wall_s - s.ttft_s for s in samples)
    draft_s = sum(s.draft_s for s in samples)
    busy_s = sum(s.busy_s for s in samples) + (draft_s if drafts_in_cloud else 0.0)
    looked_up, cloud_drafted = (sum(s.own_accepted[i] for s in samples) for i in (0, 1))
    lookup_rows, draft_rows = (sum(s.own_rows[i] for s in samples) for i in (0, 1))
    cpu_s = [s.cloud_cpu_s for s in samples if s.cloud_cpu_s is not None]
    return {
        "tokens": tokens,
        "walls_s": [round(s.wall_s, 5) for s in samples],
        "tokens_per_s": tokens / sum(s.wall_s for s in samples),
        "tokens_per_s_p50": percentile(rates, 50),
        "tokens_per_s_p95": percentile(rates, 95),
        "tokens_per_s_after_first": beyond_first / decoding_s if decoding_s else None,
        "ttft_ms_p50": percentile([s.ttft_s for s in samples], 50) * 1e3,
        "ttft_ms_p95": percentile([s.ttft_s for s in samples], 95) * 1e3,
        "cloud_steps_per_token": steps / tokens,
        "cloud_rows_per_token": sum(s.rows for s in samples) / tokens,
        "cloud_lookup_rows_per_token": lookup_rows / tokens,
        "cloud_draft_rows_per_token": draft_rows / tokens,
        "tokens_by_origin": {"edge": accepted, "cloud lookup": looked_up, "cloud draft": cloud_drafted},
        "cloud_busy_ms_per_token": busy_s * 1e3 / tokens,
        "cloud_cpu_ms_per_token": sum(cpu_s) * 1e3 / tokens if len(cpu_s) == len(samples) else None,
        "up_bytes_per_token": _beyond(samples, openings, "up_bytes") / beyond_first,
        "down_bytes_per_token": _beyond(samples, openings, "down_bytes") / beyond_first,
        "up_bytes_with_prompt_per_token": sum(s.up_bytes for s in samples) / tokens,
        "down_bytes_with_prompt_per_token": sum(s.down_bytes for s in samples) / tokens,
        "draft_ms_per_token": draft_s * 1e3 / tokens,
        "drafted_per_token": drafted / tokens,
        "wasted_drafts_per_token": (drafted - accepted) / tokens,
        "acceptance": accepted / drafted if drafted else None,
        "identical_to_plain": all(s.token_ids == p.token_ids for s, p in zip(samples, plain, strict=True)),
    }


def ratios(figures: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Tokens/s of each method over each baseline of the same cell."""
    rate = {name: figure["tokens_per_s"] for name, figure in figures.items()}
    return {name: {base: rate[name] / rate[base] for base in BASELINES if base in rate} for name in rate}


def step_seconds(samples: Sequence[Sample]) -> float:
    """Time of a step, from plain streaming without a link: the time between tokens."""
    return statistics.median((s.wall_s - s.ttft_s) / max(1, len(s.token_ids) - 1) for s in samples)


def percentile(values: Sequence[float], percent: float) -> float:
    """Interpolated percentile."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _beyond(samples: Sequence[Sample], openings: Sequence[Sample], name: str) -> int:
    bytes_of = operator.attrgetter(name)
    beyond: int = sum(map(bytes_of, samples)) - sum(map(bytes_of, openings))
    return max(0, beyond)
