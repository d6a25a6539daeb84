"""Lays the planned rows out for the model: flat rows, segments for attention, and which rows choose a token."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.kernels.layout import Segment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.schedule import Work
    from outrider_shared.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one step, works in order, each work's sure rows before its nodes.

    Attributes:
        tokens: [rows] token ids.
        positions: [rows] indices in the log (depth in the tree for drafts).
        segments: One per work.
        sampled: Rows whose logits are needed: of each decoding work its last sure row (the root), then its nodes.
        choosing: Per sampled row, the log position that it chooses a token for.
        params: Per sampled row.
        reports: Sampled rows whose log-probabilities may be wanted, each with how many likeliest tokens.
    """

    tokens: list[int]
    positions: list[int]
    segments: list[Segment]
    sampled: list[int]
    choosing: list[int]
    params: list[SamplingParams]
    reports: dict[int, int] = field(default_factory=dict)


def lay_out(works: Sequence[Work]) -> Batch:
    """The batch of a plan whose slots are reserved."""
    batch = Batch([], [], [], [], [], [])
    for work in works:
        session, start = work.session, len(batch.tokens)
        first, end = session.computed, session.computed + work.sure
        batch.tokens.extend(session.log[first:end])
        batch.tokens.extend(node.token for node in work.nodes)
        batch.positions.extend(range(first, end))
        batch.positions.extend(node.position for node in work.nodes)
        slots = session.slots[first : first + work.rows]
        batch.segments.append(Segment(session.slots[:first], slots, _parents(work)))
        if work.decodes:
            if session.request.logprobs:
                rows = range(len(batch.sampled), len(batch.sampled) + 1 + len(work.nodes))
                batch.reports.update(dict.fromkeys(rows, session.request.top_logprobs))
            batch.sampled.extend(range(start + work.sure - 1, start + work.rows))
            batch.choosing.append(end)
            batch.choosing.extend(node.position + 1 for node in work.nodes)
            batch.params.extend([session.request.params] * (1 + len(work.nodes)))
    return batch


def _parents(work: Work) -> list[int]:
    """Parent row of each row within the segment; nodes at the frontier follow the last sure row."""
    root = work.sure - 1
    row_of = {id(node): work.sure + i for i, node in enumerate(work.nodes)}
    return [*range(-1, root), *(row_of.get(id(node.parent), root) for node in work.nodes)]
