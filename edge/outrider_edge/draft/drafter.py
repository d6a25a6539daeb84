"""Who proposes tokens: the interface, and the drafter that asks a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from outrider_shared.sampling.rule import Guess, guess
from outrider_shared.sampling.shape import shaped

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.draft.runtime import DraftRuntime
    from outrider_shared.sampling import SamplingParams


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

    KV of the longest common prefix with the last sequence is kept: extending costs one row, a rollback costs nothing.

    Args:
        runtime: This session's forward passes.
    """

    def __init__(self, runtime: DraftRuntime) -> None:
        self._runtime = runtime
        self._held: list[int] = []

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        """The model's guess; None at the end of its context."""
        if len(tokens) > self._runtime.capacity:
            return None
        # The last token is always computed: its logits are what is asked for.
        common = min(_common(self._held, tokens), len(tokens) - 1)
        self._runtime.rewind(common)
        fresh = list(tokens[common:])
        logits = self._runtime.forward(fresh, rows=(0,)) if len(fresh) == 1 else self._runtime.prefill(fresh)
        del self._held[common:]
        self._held += fresh
        return guess(shaped(logits[-1], tokens, params), len(tokens), params, width)


def _common(held: list[int], tokens: Sequence[int]) -> int:
    """Length of the common prefix; the usual case, that all held tokens still stand, is one comparison."""
    shorter = min(len(held), len(tokens))
    if held[:shorter] == list(tokens[:shorter]):
        return shorter
    return next(i for i in range(shorter) if held[i] != tokens[i])
