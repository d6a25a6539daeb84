"""Which KV slot holds which token of which path: a tree of what the draft model has read. Pure bookkeeping.

The first slots are one line, the text so far, and are found by comparing lists. Branches hang on it or on each other.

    slots     0 1 2 3 | 4 5 6        line: slots 0 to 3
    parents  -1 0 1 2 | 1 4 3        branches: 4 below 1, 5 below 4, 6 below 3
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Held:
    """What the slots hold."""

    def __init__(self) -> None:
        self._line: list[int] = []
        self._parents: list[int] = []  # of the branches' slots; slot len(_line) + i is at i
        self._branches: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._line) + len(self._parents)

    @property
    def spare(self) -> int:
        """Slots that are not on the line."""
        return len(self._parents)

    def find(self, tokens: Sequence[int]) -> tuple[int, int]:
        """The slot that holds the longest prefix of `tokens`, and that prefix's length; (-1, 0) if none does."""
        depth = _common(self._line, tokens)
        slot = depth - 1
        while depth < len(tokens) and (child := self._branches.get((slot, tokens[depth]))) is not None:
            slot, depth = child, depth + 1
        return slot, depth

    def append(self, slot: int, tokens: Sequence[int]) -> None:
        """The next slots hold `tokens`, below `slot`."""
        if slot == len(self._line) - 1 and not self._parents:
            self._line += tokens
            return
        for token in tokens:
            self._branches[slot, token] = len(self)
            self._parents.append(slot)
            slot = len(self) - 1

    def keep(self, slot: int, tokens: Sequence[int]) -> tuple[int, list[int]]:
        """Forget all but the path down to `slot`, which holds `tokens`: the line from now on.

        Returns:
            The first slot that may change, and the slots from there on that stay, ascending.
        """
        path: list[int] = []
        while slot >= len(self._line):
            path.append(slot)
            slot = self._parents[slot - len(self._line)]
        self._line, self._parents, self._branches = list(tokens), [], {}
        return slot + 1, path[::-1]


def _common(held: list[int], tokens: Sequence[int]) -> int:
    """Length of the common prefix; the usual case, that all held tokens still stand, is one comparison."""
    shorter = min(len(held), len(tokens))
    if held[:shorter] == list(tokens[:shorter]):
        return shorter
    return next(i for i in range(shorter) if held[i] != tokens[i])
