"""Acceptance by construction: what a perfect guesser would draft, made wrong where a plan says so.

So every engine sees drafts of the same worth, whatever its weights know, and pays for none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence


class Replay:
    """Chains of `count` tokens for one session, of which a planned number is right.

    Args:
        prompt: Tokens before the answer.
        answer: What plain decoding gave.
        count: Tokens of a chain.
        rate: Probability that a token is right, given that those before it are.
        seed: Of the plan.
        vocabulary: Of the model.
    """

    def __init__(self, prompt: int, answer: Sequence[int], count: int, rate: float, seed: int, vocabulary: int) -> None:
        self._prompt, self._answer, self._count, self._vocabulary = prompt, list(answer), count, vocabulary
        generator = np.random.default_rng(seed)
        wrong = generator.random((len(answer) + 1, count)) >= rate
        self._right = np.where(wrong.any(1), wrong.argmax(1), count)
        self._step = 0

    def __call__(self, log: Sequence[int]) -> list[int]:
        """The next chain, below a log of prompt and answer; shorter at the answer's end, so that none goes beyond."""
        right, done = int(self._right[self._step % len(self._right)]), len(log) - self._prompt
        self._step += 1
        coming = self._answer[done : done + min(self._count, max(0, len(self._answer) - done - 1))]
        return [token if place < right else (token + 1) % self._vocabulary for place, token in enumerate(coming)]
