"""Paged tree attention in torch: each row sees its session's context, its ancestors in the step, and itself.

Two references with one interface:

`GroupedAttention` is the fast one on a CPU. Rows of a session go in groups that share one gather of its keys; a mask
hides non-ancestors. Groups of alike length and number of rows are computed together, so that neither a long session nor
one with many drafts is paid for by all. A row's bits depend on the shapes around it.

`ExactAttention` gives each row the same bits whatever surrounds it. Every row gathers its keys in log order through its
ancestor list, in splits of a fixed size at fixed positions (split s holds positions [s * 64, (s + 1) * 64)), and the
splits are reduced in order. Sums that the mask leaves empty add exact zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_cloud.kernels.kv import KvPool
    from outrider_cloud.kernels.layout import LayerSpec, Segment

GROUP_ROWS = 8
SPLIT = 64
# About 0.1 ms with two heads of 64 on one core; a part more is some twenty calls of torch.
_WORTH_A_PART = 4096
# Finite, so that a padding row whose keys are all hidden gives a number and not NaN.
_HIDDEN = -1e30


class AttentionPlan(Protocol):
    """Metadata of one step, made once and used by every layer."""

    def attend(
        self, query: torch.Tensor, kv: KvPool, layer: int, spec: LayerSpec, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """Attention of all rows.

        Args:
            query: [q_heads, rows, k_dim], rotated.
            kv: Holds the keys and values of the rows already.
            layer: Index of the layer.
            spec: Its shape.
            sinks: [q_heads] or None.

        Returns:
            [rows, q_heads, v_dim] in the query's dtype; rows beyond the segments are arbitrary but finite.
        """


class PagedAttention(Protocol):
    """Makes the plan of a step."""

    def plan(self, segments: Sequence[Segment], rows: int) -> AttentionPlan:
        """Plan for segments that cover the first rows of a batch of `rows` rows (the rest is padding)."""


def _finish(scores: torch.Tensor, spec: LayerSpec) -> torch.Tensor:
    scores = scores * spec.scale
    return scores if spec.softcap is None else torch.tanh(scores / spec.softcap) * spec.softcap


@dataclass(frozen=True, slots=True)
class _Group:
    """Up to `GROUP_ROWS` rows of a segment, from `start` on; the first is row `row` of the batch."""

    segment: Segment
    start: int
    row: int

    @property
    def rows(self) -> int:
        return min(GROUP_ROWS, len(self.segment.parents) - self.start)

    @property
    def keys(self) -> int:
        return len(self.segment.context) + len(self.segment.parents)


class _Part:
    """Groups that are computed together: each as if it had the keys of the longest, and the rows of the largest."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        length, size = max(group.keys for group in groups), max(group.rows for group in groups)
        keys = np.zeros((len(groups), length), np.int64)
        key_positions = np.zeros((len(groups), length), np.int64)
        row_positions = np.zeros((len(groups), size), np.int64)
        visible = np.zeros((len(groups), size, length), np.bool_)
        take = np.zeros((len(groups), size), np.int64)
        for g, group in enumerate(groups):
            segment, chosen = group.segment, slice(group.start, group.start + group.rows)
            context, total, count = len(segment.context), group.keys, group.rows
            depths = np.asarray(segment.depths())
            keys[g, :context], keys[g, context:total] = segment.context, segment.slots
            # Fill up with a key of its own: hidden keys weigh nothing, but a neighbour's NaN times nothing is NaN.
            keys[g, total:] = segment.slots[0]
            key_positions[g, :context], key_positions[g, context:total] = np.arange(context), context + depths
            row_positions[g, :count] = context + depths[chosen]
            visible[g, :count, :context] = True
            visible[g, :count, context:total] = segment.ancestors()[chosen]
            take[g, :count] = np.arange(group.row, group.row + count)
        self.size, self._groups = size, len(groups)
        self._keys = torch.from_numpy(keys.reshape(-1))
        self._take = torch.from_numpy(take.reshape(-1))
        self._visible = torch.from_numpy(visible)
        self._key_positions, self._row_positions = torch.from_numpy(key_positions), torch.from_numpy(row_positions)
        self._masks: dict[int | None, torch.Tensor] = {}

    def mask(self, window: int | None) -> torch.Tensor:
        """[groups, 1, size, length] float32: 0 where visible."""
        if window not in self._masks:
            seen = self._visible
            if window is not None:
                seen = seen & (self._row_positions[:, :, None] - self._key_positions[:, None, :] < window)
            self._masks[window] = torch.where(seen, 0.0, _HIDDEN)[:, None]
        return self._masks[window]

    def attend(
        self, query: torch.Tensor, kv: KvPool, layer: int, spec: LayerSpec, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        """As `AttentionPlan.attend`, in float32: [groups * size, q_heads, v_dim]."""
        groups, size, share = self._groups, self.size, spec.q_heads // spec.kv_heads
        keys = kv.keys[layer].index_select(1, self._keys).view(spec.kv_heads, groups, -1, spec.k_dim).float()
        values = kv.values[layer].index_select(1, self._keys).view(spec.kv_heads, groups, -1, spec.v_dim).float()
        # [kv_heads, share, groups, size, dim] -> [kv_heads, groups, share * size, dim]
        packed = query.float().index_select(1, self._take).view(spec.kv_heads, share, groups, size, spec.k_dim)
        packed = packed.transpose(1, 2).reshape(spec.kv_heads, groups, share * size, spec.k_dim)
        scores = _finish(packed @ keys.transpose(-1, -2), spec)
        scores = scores.view(spec.kv_heads, groups, share, size, -1) + self.mask(spec.window)
        if sinks is not None:
            column = sinks.float().view(spec.kv_heads, 1, share, 1, 1).expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, column), -1)
        weights = scores.softmax(-1)[..., : keys.shape[2]].reshape(spec.kv_heads, groups, share * size, -1)
        out = (weights @ values).view(spec.kv_heads, groups, share, size, spec.v_dim)
        return out.permute(1, 3, 0, 2, 4).reshape(groups * size, spec.q_heads, spec.v_dim)


@dataclass(frozen=True, slots=True)
class _GroupedPlan:
    parts: list[_Part]
    place: torch.Tensor  # [rows] place of each row in what the parts give, one after the other

    def attend(
        self, query: torch.Tensor, kv: KvPool, layer: int, spec: LayerSpec, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        out = torch.cat([part.attend(query, kv, layer, spec, sinks) for part in self.parts])
        return out.index_select(0, self.place).to(query.dtype)


def _alike(groups: Sequence[_Group], worth: int) -> list[list[_Group]]:
    """Groups in parts of alike size, as far as each more spares so many keys, times rows that look at them."""
    parts: list[list[_Group]] = []
    single = [group for group in groups if group.rows == 1]
    several = [group for group in groups if group.rows > 1]
    apart = several and (GROUP_ROWS - 1) * sum(group.keys for group in single) >= worth
    for kind in (single, several) if apart else (groups,):
        left = sorted(kind, key=lambda group: -group.keys)
        while left:
            longest = left[0].keys
            cut = next((n for n, group in enumerate(left) if 2 * group.keys <= longest), len(left))
            spared = sum(longest - group.keys for group in left[cut:])
            if spared * left[0].rows < worth:
                cut = len(left)
            parts.append(left[:cut])
            left = left[cut:]
    return parts


class GroupedAttention:
    """Rows in groups that share a gather of their session's keys; see the module.

    Args:
        worth_a_part: Keys, times rows that look at them, that computing groups apart must spare to be worth its calls.
    """

    def __init__(self, worth_a_part: int = _WORTH_A_PART) -> None:
        self._worth_a_part = worth_a_part

    def plan(self, segments: Sequence[Segment], rows: int) -> AttentionPlan:
        """Plan for segments that cover the first rows of a batch of `rows` rows."""
        groups, first = list[_Group](), 0
        for segment in segments:
            count = len(segment.parents)
            groups += [_Group(segment, start, first + start) for start in range(0, count, GROUP_ROWS)]
            first += count
        parts, places, before = list[_Part](), np.zeros(rows, np.int64), 0
        for alike in _alike(groups, self._worth_a_part):
            part = _Part(alike)
            for g, group in enumerate(alike):
                places[group.row : group.row + group.rows] = before + g * part.size + np.arange(group.rows)
            before += len(alike) * part.size
            parts.append(part)
        return _GroupedPlan(parts, torch.from_numpy(places))


@dataclass
class _ExactPlan:
    keys: torch.Tensor  # [rows * splits * SPLIT] int64 slots in log order
    lengths: torch.Tensor  # [rows] visible keys
    splits: int
    masks: dict[int | None, torch.Tensor]

    def mask(self, window: int | None) -> torch.Tensor:
        """[rows, splits, 1, SPLIT] float32: 0 where visible."""
        if window not in self.masks:
            position = torch.arange(self.splits * SPLIT).view(1, self.splits, 1, SPLIT)
            lengths = self.lengths.view(-1, 1, 1, 1)
            seen = position < lengths
            if window is not None:
                seen = seen & (position >= lengths - window)
            self.masks[window] = torch.where(seen, 0.0, _HIDDEN)
        return self.masks[window]

    def attend(
        self, query: torch.Tensor, kv: KvPool, layer: int, spec: LayerSpec, sinks: torch.Tensor | None
    ) -> torch.Tensor:
        rows, share, heads = len(self.lengths), spec.q_heads // spec.kv_heads, spec.kv_heads
        shape = (heads, rows, self.splits, SPLIT)
        keys = kv.keys[layer].index_select(1, self.keys).view(*shape, spec.k_dim).float()
        values = kv.values[layer].index_select(1, self.keys).view(*shape, spec.v_dim).float()
        packed = query.float().view(heads, share, rows, 1, spec.k_dim).permute(0, 2, 3, 1, 4)
        packed = packed.expand(heads, rows, self.splits, share, spec.k_dim).contiguous()
        scores = _finish(packed @ keys.transpose(-1, -2), spec) + self.mask(spec.window)
        top = scores.amax((2, 4), keepdim=True)
        if sinks is not None:
            sink = sinks.float().view(heads, 1, 1, share, 1)
            top = torch.maximum(top, sink)
        weights = torch.exp(scores - top)
        sums, partial = weights.sum(-1, keepdim=True), weights @ values
        total, out = sums[:, :, 0], partial[:, :, 0]
        for split in range(1, self.splits):
            total, out = total + sums[:, :, split], out + partial[:, :, split]
        if sinks is not None:
            total = total + torch.exp(sink - top)[:, :, 0]
        return (out / total).permute(1, 0, 2, 3).reshape(rows, spec.q_heads, spec.v_dim).to(query.dtype)


class ExactAttention:
    """Every row by itself, in log order and fixed splits; see the module."""

    def plan(self, segments: Sequence[Segment], rows: int) -> AttentionPlan:
        """Plan for segments that cover the first rows of a batch of `rows` rows."""
        lists: list[NDArray[np.int64]] = []
        for segment in segments:
            if segment.is_chain():
                whole = np.concatenate((segment.context, segment.slots))
                lists += [whole[: len(segment.context) + r + 1] for r in range(len(segment.parents))]
            else:
                paths = [segment.path_slots(r) for r in range(len(segment.parents))]
                lists += [np.concatenate((segment.context, path)) for path in paths]
        lengths = np.ones(rows, np.int64)
        lengths[: len(lists)] = [len(keys) for keys in lists]
        splits = -(-int(lengths.max()) // SPLIT)
        keys = np.zeros((rows, splits * SPLIT), np.int64)
        for row, slots in enumerate(lists):
            # Fill up with the row's own key: hidden keys weigh nothing, but a neighbour's NaN times nothing is NaN.
            keys[row, : len(slots)], keys[row, len(slots) :] = slots, slots[-1]
        return _ExactPlan(torch.from_numpy(keys.reshape(-1)), torch.from_numpy(lengths), splits, masks={})
