"""Which KV slot holds which node of the draft tree. Pure bookkeeping: no weights, no buffers.

A slot is one token position in the KV cache; slot numbers count from 0 in the order of computation. Every slot has a
parent slot (-1 for the first) and a position, its depth below the start of the text. As long as every slot's parent is
the slot before it, the cache is a chain and position equals slot.

    slots            0 1 2 3 | 4 5 6
    parents         -1 0 1 2 | 3 3 4
    positions        0 1 2 3 | 4 4 5
                     trunk=4

Slots below `trunk` are on every root path, so only those from `trunk` on must be masked. Rules: a parent comes before
its child (the attention kernel is causal in slots), and a first pass is a chain.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from outrider_shared.errors import DraftError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MASKED = np.float32(-1e9)  # finite: a row of -inf only would become NaN


class Slots:
    """Parents and positions of the used slots.

    Attributes:
        parents: Parent slot of each used slot.
        positions: Depth of each used slot.
        trunk: Number of leading slots that are ancestors of all that follow.
    """

    def __init__(self) -> None:
        self.parents: list[int] = []
        self.positions: list[int] = []
        self.trunk = 0

    def __len__(self) -> int:
        return len(self.parents)

    @property
    def is_chain(self) -> bool:
        """Whether no used slot has to be masked from any other."""
        return self.trunk == len(self.parents)

    def append_chain(self, count: int) -> None:
        """Use `count` more slots, each the child of the slot before it."""
        start = len(self.parents)
        position = self.positions[-1] + 1 if start else 0
        self.parents.extend(range(start - 1, start + count - 1))
        self.positions.extend(range(position, position + count))
        if self.trunk == start:
            self.trunk = start + count

    def append_tree(self, parents: Sequence[int]) -> None:
        """Use `len(parents)` more slots; `parents[i]` is the parent slot of the i-th.

        Raises:
            DraftError: A parent does not exist or does not come before its child; nothing was appended.
        """
        start = len(self.parents)
        for slot, parent in enumerate(parents, start):
            if not 0 <= parent < slot:
                self.rewind(start)
                raise DraftError(f"slot {slot} names slot {parent} as its parent; it must be from 0 to {slot - 1}")
            self.parents.append(parent)
            self.positions.append(self.positions[parent] + 1)
        self._shrink_trunk(start)

    def rewind(self, length: int) -> None:
        """Give back all slots from `length` on.

        Raises:
            DraftError: `length` is negative or above the used slots.
        """
        if not 0 <= length <= len(self.parents):
            raise DraftError(f"cannot rewind to {length} of {len(self.parents)} slots")
        del self.parents[length:]
        del self.positions[length:]
        self._shrink_trunk(min(self.trunk, length))

    def compact(self, base: int, kept: Sequence[int]) -> None:
        """Keep, of the slots from `base` on, only `kept` (ascending), which become base, base + 1, ...

        Raises:
            DraftError: `kept` is not ascending within base..len, or holds a slot whose parent is dropped.
        """
        if not 0 <= base <= len(self) or any(
            a >= b for a, b in zip([base - 1, *kept], [*kept, len(self)], strict=True)
        ):
            raise DraftError(
                f"cannot keep slots {list(kept)} from {base} on: they must ascend and be below {len(self)}"
            )
        moved = {old: new for new, old in enumerate(kept, base)}
        orphans = [slot for slot in kept if self.parents[slot] >= base and self.parents[slot] not in moved]
        if orphans:
            raise DraftError(f"cannot keep slots {orphans}: their parents are dropped")
        self.parents[base:] = [moved.get(self.parents[slot], self.parents[slot]) for slot in kept]
        self.positions[base:] = [self.positions[slot] for slot in kept]
        self._shrink_trunk(min(self.trunk, base))

    def fill_bias(self, bias: NDArray[np.float32]) -> None:
        """Write the mask of the last rows: 0 where a row sees a slot, `MASKED` elsewhere.

        Args:
            bias: [rows, len(self)] float32, for the last `rows` slots.
        """
        bias[:, : self.trunk] = 0
        bias[:, self.trunk :] = MASKED
        for row, slot in enumerate(range(len(self) - len(bias), len(self))):
            ancestor = slot
            while ancestor >= self.trunk:
                bias[row, ancestor] = 0
                ancestor = self.parents[ancestor]

    def _shrink_trunk(self, start: int) -> None:
        """Set the trunk, given that all slots below `start` are as the present trunk assumes."""
        branches = [parent + 1 for slot, parent in enumerate(self.parents[start:], start) if parent != slot - 1]
        below = self.trunk if self.trunk < start else len(self.parents)
        self.trunk = min([*branches, below])
