"""What a step tells the attention kernels, as flat int32 arrays: made in numpy, read by every layer.

positions  [rows]         index in the log
slots      [rows]         where keys and values go, -1 for padding
forks      [rows]         first position that the row does not see through its tile's table
ancestors  [rows, width]  slots of positions fork, fork + 1, ... up to the row itself
tiles      [tiles, 3]     first row, rows, start of its pages in `table`
table      [pages]        pages of each segment's tokens that lie in log order
and for each width of window (0 is none):
parts      [rows]         first entry of the row's partial results, -1 for padding
work       [items, 2]     tile, split
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from outrider_cloud.kernels.cuda.source import SPLIT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from outrider_cloud.kernels.layout import Segment

# Rows that share an item of work: their keys come from memory once, and from the cache for every pass after the first.
TILE_ROWS = 16


@dataclass(frozen=True)
class WindowWork:
    """The part that depends on the window; see the module."""

    parts: NDArray[np.int32]
    work: NDArray[np.int32]
    entries: int


@dataclass(frozen=True)
class StepArrays:
    """The arrays of a step; see the module."""

    positions: NDArray[np.int32]
    slots: NDArray[np.int32]
    forks: NDArray[np.int32]
    ancestors: NDArray[np.int32]
    tiles: NDArray[np.int32]
    table: NDArray[np.int32]
    windows: dict[int, WindowWork]


def chain_length(parents: Sequence[int]) -> int:
    """Rows at the start of a segment that follow one another: their slots continue the log's."""
    return next((row for row, parent in enumerate(parents) if parent != row - 1), len(parents))


def step_arrays(
    segments: Sequence[Segment], rows: int, page_bits: int, windows: Sequence[int], ancestor_width: int = 0
) -> StepArrays:
    """The arrays of segments that cover the first rows of a batch of `rows` rows.

    Args:
        segments: Tokens in log order must fill whole pages, the last one aside.
        rows: Rows of the batch; those behind the segments are padding.
        page_bits: Tokens of a page, as a power of two.
        windows: Distinct sliding windows of the layers, 0 for full attention.
        ancestor_width: Columns of `ancestors`; 0 takes what the deepest branch needs.
    """
    positions, slots = np.zeros(rows, np.int32), np.full(rows, -1, np.int32)
    forks, branches = np.ones(rows, np.int32), []
    tiles: list[tuple[int, int, int]] = []
    pages: list[NDArray[np.int64]] = []
    row = table = 0
    for segment in segments:
        count, context, chain = len(segment.parents), len(segment.context), chain_length(segment.parents)
        ordered = np.concatenate((segment.context, segment.slots[:chain]))
        pages.append(ordered[:: 1 << page_bits] >> page_bits)
        own = slice(row, row + count)
        slots[own] = segment.slots
        positions[row : row + chain] = context + np.arange(chain)
        forks[row : row + chain] = positions[row : row + chain] + 1
        for i in range(chain, count):
            parent = segment.parents[i]
            positions[row + i] = context if parent < 0 else positions[row + parent] + 1
            # A parent on the chain is seen through the table; one beyond it shares its fork.
            forks[row + i] = positions[row + i] if parent < chain else forks[row + parent]
            branches.append((row + i, _branch(segment, i, chain)))
        tiles += [(row + start, min(TILE_ROWS, count - start), table) for start in range(0, count, TILE_ROWS)]
        row, table = row + count, table + len(pages[-1])
    width = ancestor_width or max((len(branch) for _, branch in branches), default=1)
    ancestors = np.zeros((rows, width), np.int32)
    for at, branch in branches:
        ancestors[at, : len(branch)] = branch
    shape = np.asarray(tiles, np.int32).reshape(-1, 3)
    every = np.concatenate(pages).astype(np.int32) if pages else np.zeros(0, np.int32)
    work = {window: _window_work(positions, shape, row, window) for window in windows}
    return StepArrays(positions, slots, forks, ancestors, shape, every, work)


def _branch(segment: Segment, row: int, chain: int) -> list[int]:
    """Slots from the row's first ancestor beyond the chain down to itself."""
    path: list[int] = []
    while row >= chain:
        path.append(int(segment.slots[row]))
        row = segment.parents[row]
    return path[::-1]


def _window_work(positions: NDArray[np.int32], tiles: NDArray[np.int32], rows: int, window: int) -> WindowWork:
    """Which splits each tile sees, and where each row's partial results lie."""
    lowest = np.maximum(positions - window + 1, 0) if window else np.zeros_like(positions)
    counts = positions[:rows] // SPLIT - lowest[:rows] // SPLIT + 1
    parts = np.full(len(positions), -1, np.int32)
    ends = np.cumsum(counts)
    parts[:rows] = ends - counts
    starts = tiles[:, 0]
    if not len(starts):
        return WindowWork(parts, np.zeros((0, 2), np.int32), 0)
    first = np.minimum.reduceat(lowest[:rows], starts) // SPLIT
    many = np.maximum.reduceat(positions[:rows], starts) // SPLIT - first + 1
    tile = np.repeat(np.arange(len(tiles)), many)
    split = np.arange(len(tile)) - np.repeat(np.cumsum(many) - many, many) + np.repeat(first, many)
    return WindowWork(parts, np.stack((tile, split), 1).astype(np.int32), int(ends[-1]))
