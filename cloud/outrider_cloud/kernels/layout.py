"""What a step tells the kernels: which rows run, where their keys lie, and what each layer expects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """Attention of one layer, as the shape probe saw it (local heads under tensor parallelism).

    Attributes:
        q_heads, kv_heads: Heads of queries and of keys and values.
        k_dim, v_dim: Size of one key and of one value head.
        scale: Factor on the dot products.
        window: Sliding window in positions, a row sees itself and window - 1 before it; None is full attention.
        softcap: Cap c of c * tanh(score / c); None is off.
        sinks: Whether the layer has a learned sink logit per query head.
    """

    q_heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    window: int | None
    softcap: float | None
    sinks: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive rows of one session in a step.

    Attributes:
        context: [context] int64, KV slots of the session's computed tokens in log order.
        slots: [rows] int64, the slot that each row's key and value go to.
        parents: Row (within the segment) that each row follows; -1 = the last context token. A parent comes first.
    """

    context: NDArray[np.int64]
    slots: NDArray[np.int64]
    parents: list[int]

    def depths(self) -> list[int]:
        """Tokens between the context and each row: 0 for a row that follows the context."""
        depths: list[int] = []
        for parent in self.parents:
            depths.append(0 if parent < 0 else depths[parent] + 1)
        return depths

    def is_chain(self) -> bool:
        """Whether every row follows the one before it, as in prefill."""
        return all(parent == row - 1 for row, parent in enumerate(self.parents))

    def ancestors(self) -> NDArray[np.bool_]:
        """[rows, rows]: whether column's row is row's ancestor or itself."""
        count = len(self.parents)
        if self.is_chain():
            return np.tri(count, dtype=np.bool_)
        seen = np.eye(count, dtype=np.bool_)
        for row, parent in enumerate(self.parents):
            if parent >= 0:
                seen[row] |= seen[parent]
        return seen

    def path_slots(self, row: int) -> list[int]:
        """Slots of the row's ancestors in this step and of itself, in log order."""
        path = []
        while row >= 0:
            path.append(int(self.slots[row]))
            row = self.parents[row]
        return path[::-1]
