"""Drafters that are wrong in every way there is."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from outrider_shared.sampling.rule import Guess

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.sampling import SamplingParams


class RandomDrafter:
    """Proposes tokens at random, with any margin."""

    def __init__(self, seed: int, vocabulary: int) -> None:
        self._random, self._vocabulary = random.Random(seed), vocabulary

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        count = self._random.randint(1, width)
        chosen = tuple(self._random.sample(range(self._vocabulary), count))
        margin = self._random.uniform(0.0, 9.0)
        return Guess(chosen, tuple(0.1 * i for i in range(count)), margin)


class OracleDrafter:
    """Knows the answer, and lies at times: right tokens, a right sibling behind a wrong first, all wrong, nothing."""

    def __init__(self, seed: int, vocabulary: int, answer: Sequence[int], lies: float) -> None:
        self._random, self._vocabulary, self._answer, self._lies = random.Random(seed), vocabulary, answer, lies

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        if len(tokens) >= len(self._answer) or (draw := self._random.random()) < 0.02:
            return None
        right = self._answer[len(tokens)]
        wrong = (right + 1 + self._random.randrange(self._vocabulary - 1)) % self._vocabulary
        first, second = (right, wrong) if draw >= self._lies else (wrong, right)
        if draw < self._lies / 2:
            second = (wrong + 1) % self._vocabulary
        chosen = (first, second) if first != second else (first,)
        return Guess(chosen[:width], (0.0, 0.1)[: min(width, len(chosen))], self._random.choice([0.05, 1.0, 6.0]))


class AdversarialDrafter:
    """Always proposes what the target did not choose, and claims to be sure of it."""

    def __init__(self, vocabulary: int, answer: Sequence[int]) -> None:
        self._vocabulary, self._answer = vocabulary, answer

    def propose(self, tokens: Sequence[int], params: SamplingParams, width: int) -> Guess | None:
        known = self._answer[len(tokens)] if len(tokens) < len(self._answer) else 0
        wrong = tuple((known + 1 + i) % self._vocabulary for i in range(width))
        return Guess(wrong, (0.0,) * width, 9.0)


class CloudRounds:
    """Stands for a draft model beside the target: a drafter for each session, and a round that costs nothing."""

    def __init__(self) -> None:
        self.drafters: dict[str, object] = {}

    def seconds(self, asks):
        return 1e-9

    def reading_s(self, ask):
        return 0.0

    def guess(self, asks, width):
        return [self.drafters[a.session_id].propose(a.log + a.tail, a.params, width) for a in asks]

    def forget(self, session_id):
        """Nothing is held."""
