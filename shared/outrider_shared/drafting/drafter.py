"""Who proposes tokens: the interface, and the drafter that asks a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from outrider_shared.drafting.held import Held
from outrider_shared.drafting.runtime import MAX_ROWS
from outrider_shared.sampling.rule import Guess, guess
from outrider_shared.sampling.shape import shaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from outrider_shared.drafting.runtime import DraftRuntime
    from outrider_shared.sampling import SamplingParams

# Slots of branches that are kept in case they are gone on with.
_MOST_SPARE = 96


class Drafter(Protocol):
    """Proposes what follows a sequence. It may be wrong in any way: only speed depends on it, never the text."""

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        """The likeliest next tokens, best first.

        Args:
            tokens: The log and a path of the draft tree, in order.
            params: How the target will choose; its noise is the drafter's too.
            width: Candidates wanted at most.

        Returns:
            The guess, or None if this drafter has nothing to say here.
        """


class ModelDrafter:
    """A draft model with coupled sampling (the same rule and noise as the target's).

    What it has read stays in its KV, branches included: to extend any of them costs one row.

    Args:
        runtime: This session's forward passes.
    """

    def __init__(self, runtime: DraftRuntime) -> None:
        self._runtime = runtime
        self._held = Held()

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        """The model's guess; None at the end of its context."""
        if len(tokens) > self._runtime.capacity:
            return None
        # The last token is always computed: its logits are what is asked for.
        slot, depth = self._held.find(tokens[:-1])
        fresh = list(tokens[depth:])
        if self._held.spare > _MOST_SPARE or len(fresh) > MAX_ROWS or self._full(len(fresh)):
            self._runtime.compact(*self._held.keep(slot, tokens[:depth]))
            slot = depth - 1
        logits = self._read(fresh, slot)
        return guess(shaped(logits[-1], tokens, params), len(tokens), params, width)

    def missing(self, tokens: Sequence[int]) -> int:
        """Rows that a proposal for what follows `tokens` computes: those not read yet, and the last."""
        return len(tokens) - self._held.find(tokens[:-1])[1]

    def _full(self, fresh: int) -> bool:
        return len(self._held) + fresh > self._runtime.capacity

    def _read(self, fresh: list[int], slot: int) -> NDArray[np.float32]:
        """Run `fresh` below `slot`; logits of the last row."""
        end = len(self._held)
        if slot == end - 1:
            logits = self._runtime.forward(fresh, rows=(0,)) if len(fresh) == 1 else self._runtime.prefill(fresh)
        elif slot < 0:
            self._runtime.rewind(0)
            self._held = Held()
            logits = self._runtime.prefill(fresh)
        else:
            parents = [slot, *range(end, end + len(fresh) - 1)]
            logits = self._runtime.forward(fresh, parents, rows=(len(fresh) - 1,))
        self._held.append(slot, fresh)
        return logits
