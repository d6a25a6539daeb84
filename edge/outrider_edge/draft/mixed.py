"""Two drafters, whichever is trusted more: lookup where a long run repeats, the model elsewhere.

A lookup that survives well enough saves the model's pass altogether; the model catches up on the tokens in between with
one pass over them. Where both speak and differ, the other's token goes along as a sibling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.sampling.rule import Guess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_shared.drafting.drafter import Drafter
    from outrider_shared.sampling import SamplingParams

SURE = 0.85


class MixedDrafter:
    """Asks the cheap drafter first, and the dear one where it is not sure.

    Args:
        cheap: Costs next to nothing.
        dear: Costs a forward pass.
        survival_of: Probability that a guess is right, from what was committed before.
    """

    def __init__(self, cheap: Drafter, dear: Drafter, survival_of: Callable[[Guess], float]) -> None:
        self._cheap, self._dear, self._survival_of = cheap, dear, survival_of

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        """The guess that is more likely right."""
        quick = self._cheap.propose(tokens, params, width)
        if quick is not None and self._survival_of(quick) >= SURE:
            return quick
        slow = self._dear.propose(tokens, params, width)
        if quick is None or slow is None:
            return slow or quick
        first, second = (quick, slow) if self._survival_of(quick) > self._survival_of(slow) else (slow, quick)
        others = tuple(token for token in (*second.tokens, *first.tokens[1:]) if token != first.tokens[0])
        tokens_ = (first.tokens[0], *dict.fromkeys(others))[:width]
        return Guess(tokens_, (0.0,) * len(tokens_), first.margin, first.source)
