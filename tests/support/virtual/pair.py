"""What a target and a draft say, as recorded: answers, and the draft's guess at each of their positions.

A guess off the target's path is never committed, so which tokens it has does not matter; its margin does, since it
steers how far a device drafts on. There it is taken from another position of the recording.

The recording is older than the draft that ships: decision 0027 says why it stays. The target is the one that ships.
"""

from __future__ import annotations

import functools
import json
import zlib
from dataclasses import dataclass
from pathlib import Path

from outrider_shared.sampling.rule import Guess

FOLDER = Path(__file__).parent
GREEDY, WARM = "pair.json", "pair-t1.json"


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        prompt, tokens: Token ids; the last one ends the answer.
        guesses: Per token, the draft's guess given the target's text before it.
    """

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Pair:
    """Answers of one model pair."""

    vocabulary: int
    eos: int
    answers: tuple[Answer, ...]

    def choose(self, number: int, position: int) -> int:
        """What the target has at a position of the log of answer `number` (any number; answers repeat)."""
        answer = self.answers[number % len(self.answers)]
        index = position - len(answer.prompt)
        return answer.tokens[index] if index < len(answer.tokens) else self.eos

    def guess(self, number: int, tokens, width: int) -> Guess:
        """What the draft says after `tokens`."""
        answer = self.answers[number % len(self.answers)]
        index = len(tokens) - len(answer.prompt)
        if 0 <= index < len(answer.tokens) and tuple(tokens[len(answer.prompt) :]) == answer.tokens[:index]:
            told = answer.guesses[index]
        else:
            draw = zlib.crc32(repr(tuple(tokens[-4:])).encode() + len(tokens).to_bytes(4, "little"))
            other = self.answers[draw % len(self.answers)]
            told = other.guesses[(draw >> 8) % len(other.guesses)]
        return Guess(told.tokens[:width], told.margins[:width], told.margin)


class PairDrafter:
    """The recorded draft as a device's drafter. The seed of the sampling parameters says which answer it is."""

    def __init__(self, pair: Pair) -> None:
        self._pair = pair

    def propose(self, tokens, params, width):
        return self._pair.guess(params.seed, tokens, width)


@functools.cache
def recorded(name: str = GREEDY) -> Pair:
    """The bundled pair at temperature 0, or at 1 (`WARM`), where fewer drafts are right."""
    data = json.loads((FOLDER / name).read_text())
    answers = []
    for item in data["answers"]:
        guesses = tuple(
            Guess(tuple(g[1:]), (0.0, *(g[0],) * (len(g) - 2)), g[0] if len(g) > 2 else float("inf"))
            for g in item["guesses"]
        )
        answers.append(Answer(tuple(item["prompt"]), tuple(item["tokens"]), guesses))
    return Pair(data["vocabulary"], data["eos"], tuple(answers))
