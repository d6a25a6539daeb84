"""Somebody who asks the endpoint the same few things again and again, and notes what came and how long it took."""

from __future__ import annotations

import json
import statistics
import threading
import time
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import urllib3

QUESTIONS, TOKENS = 6, 40
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        at: Monotonic seconds when it was asked for.
        question: Which one.
    """

    at: float
    question: int
    seconds: float
    text: str


class Asker(threading.Thread):
    """Asks from `start` until `end`, with a pause of `pause_s` between two questions.

    Attributes:
        answers: In order.
        lost: What went wrong with those that got none.
    """

    def __init__(self, url: str, *, pause_s: float = _PAUSE_S) -> None:
        super().__init__(name="asker", daemon=True)
        self._pause_s = pause_s
        self.answers: list[Answer] = []
        self.lost: list[str] = []
        self._url, self._http, self._ended = f"{url}/v1/chat/completions", urllib3.PoolManager(), threading.Event()
        lines = (files("outrider_shared") / "bundled" / "requests.jsonl").read_text("utf-8").splitlines()
        self._asked: list[list[dict[str, Any]]] = [json.loads(line)["messages"] for line in lines[:QUESTIONS]]

    def run(self) -> None:
        """One request after the other, as one user at a device would."""
        number = 0
        while not self._ended.wait(self._pause_s):
            self._ask(number % len(self._asked))
            number += 1

    def end(self) -> None:
        """Stop after the request that is under way."""
        self._ended.set()
        self.join()

    def _ask(self, question: int) -> None:
        body = {"model": "outrider", "messages": self._asked[question], "temperature": 0, "max_tokens": TOKENS}
        began = time.monotonic()
        try:
            got = self._http.request("POST", self._url, json=body, timeout=60.0, retries=False)
            text = got.json()["choices"][0]["message"]["content"]
        except (urllib3.exceptions.HTTPError, ValueError, LookupError, TypeError) as error:
            self.lost.append(f"{type(error).__name__}: {error}")
            return
        self.answers.append(Answer(began, question, time.monotonic() - began, text))

    @property
    def texts(self) -> int:
        """Different texts that a question got, at most; 1 where nothing ever changed."""
        found = [{a.text for a in self.answers if a.question == i} for i in range(len(self._asked))]
        return max(map(len, found), default=0)

    def median_s(self, since: float, until: float) -> float | None:
        """Median time of the answers asked for in between."""
        chosen = [a.seconds for a in self.answers if since <= a.at < until]
        return statistics.median(chosen) if chosen else None

    def slowdown(self, reference: tuple[float, float], looked_at: tuple[float, float]) -> float | None:
        """How much longer answers of one time took than the same questions' median of another; 0.05 is 5 %."""
        usual: dict[int, list[float]] = {}
        for answer in self.answers:
            if reference[0] <= answer.at < reference[1]:
                usual.setdefault(answer.question, []).append(answer.seconds)
        ratios = [
            a.seconds / statistics.median(usual[a.question])
            for a in self.answers
            if looked_at[0] <= a.at < looked_at[1] and a.question in usual
        ]
        return statistics.median(ratios) - 1 if ratios else None
