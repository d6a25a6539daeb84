"""Gathers one session's refused drafts from the engine's events, on the loop's thread."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Committed
from outrider_cloud.replay.records import Record

if TYPE_CHECKING:
    from outrider_cloud.engine.events import Event, Refused, Request

_MOST_REFUSED = 4096


class Recording:
    """One stream's part of a session: what was refused before it, the stream before it has kept."""

    def __init__(self, request: Request, context_tokens: int) -> None:
        self._log = [*request.prompt, *request.committed]
        self._answer_start = len(request.prompt)
        self._temperature = request.params.temperature
        self._context_tokens = context_tokens
        self._refused: list[Refused] = []

    def take(self, event: Event) -> None:
        """Follow the log."""
        if isinstance(event, Committed):
            self._log += event.tokens
            self._refused += event.refused[: _MOST_REFUSED - len(self._refused)]

    def record(self) -> Record | None:
        """What is worth keeping: from a little before the first refused draft to the last; None if none was refused."""
        if not self._refused:
            return None
        refused = sorted(self._refused, key=lambda each: each.position)
        start = max(0, refused[0].position - self._context_tokens)
        return Record(
            tuple(self._log[start : refused[-1].position + 1]),
            max(0, self._answer_start - start),
            tuple(replace(each, position=each.position - start) for each in refused),
            self._temperature,
        )
