"""One choice of an answer: a session's events in, text, calls and details out.

Rules:
    * Tokens are taken one by one. What ends an answer (a stop string, a second call where one was allowed) ends it at
      that token however many came with it; the session is then cancelled in the cloud.
    * Text that the target has not confirmed is told only where the whole answer is of that kind, or where details
      were asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_edge.api.answer_text import AnswerText, Piece
from outrider_edge.api.tool_calls import ToolCallReader
from outrider_edge.session.events import (
    Finished,
    Origin,
    Retracted,
    Started,
    Token,
    Tokens,
    Totals,
    Unverified,
    Verified,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from outrider_edge.api.answer_text import Told
    from outrider_edge.api.asks import Ask
    from outrider_edge.api.outfit import Outfit
    from outrider_edge.api.tool_calls import CallDelta
    from outrider_edge.session.events import GenerateRequest, SessionEvent


@dataclass(frozen=True, slots=True)
class Delta:
    """More of a choice.

    Attributes:
        choice: Its index.
        parts: Text, and parts of calls, in order.
        tokens: Those whose text is complete with it.
        event: What happened, where details were asked for; tokens are told by `tokens`.
        totals: Where details were asked for: what the session did so far.
        count: Tokens so far.
    """

    choice: int
    parts: tuple[str | CallDelta, ...] = ()
    tokens: tuple[Told, ...] = ()
    event: SessionEvent | None = None
    totals: Totals | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class End:
    """A choice is complete.

    Attributes:
        choice: Its index.
        reason: As clients know it: stop, length or tool_calls.
        tokens: Tokens that count as generated.
        unverified: Whether no target confirmed the end of it.
        totals: What the session did.
    """

    choice: int
    reason: str
    tokens: int
    unverified: bool
    totals: Totals


_REASONS = {"eos": "stop", "stop": "stop", "length": "length", "context": "length", "cancelled": "stop"}


async def run_choice(
    index: int,
    request: GenerateRequest,
    ask: Ask,
    outfit: Outfit,
    listen: Callable[[SessionEvent], None] | None = None,
) -> AsyncGenerator[Delta | End]:
    """Deltas of one choice, and its end; `listen` is told each event of the session.

    Raises:
        OutriderError: as `Device.events`.
    """
    choice = _Choice(index, ask, outfit)
    device = outfit.device
    events = device.events(request, drafter=ask.drafter, offline=ask.offline, local_only=ask.local_only)
    async with contextlib.aclosing(events):
        async for event in events:
            if listen is not None:
                listen(event)
            for out in choice.take(event):
                yield out
            if choice.over:
                break
    for last in choice.close():
        yield last


class _Choice:
    """What is known of a choice while it is made."""

    def __init__(self, index: int, ask: Ask, outfit: Outfit) -> None:
        self._index, self._ask = index, ask
        self._most, self._ends = ask.requests[index].max_tokens, outfit.vocabulary.control
        shown = outfit.vocabulary.controls(ask.tools.marks) if ask.tools else frozenset()
        self._text = AnswerText(outfit.vocabulary, ask.stops, shown)
        self._reader = ToolCallReader(ask.tools) if ask.tools else None
        self._totals = Totals()
        self._reason = "stop"
        self._unverified = False
        self._alone: list[int] = []

    @property
    def over(self) -> bool:
        """Whether nothing that still comes can belong to this choice."""
        return self._text.stopped or self._enough_calls

    @property
    def _enough_calls(self) -> bool:
        return self._reader is not None and not self._ask.parallel_calls and self._reader.complete > 0

    def take(self, event: SessionEvent) -> list[Delta]:
        """What one event adds."""
        # Tokens that the device drafted alone are told when they are confirmed, or when the answer ends without that.
        if isinstance(event, Unverified):
            self._alone += event.tokens
        elif isinstance(event, Retracted):
            del self._alone[-event.count :]
        elif isinstance(event, Verified):
            del self._alone[: len(event.tokens)]
        if isinstance(event, Started):
            self._totals = event.totals
        elif isinstance(event, Finished):
            self._totals, self._reason = event.totals, _REASONS.get(event.reason, "stop")
            if self._alone:
                return self._last_alone()
        elif isinstance(event, Tokens):
            return self._tokens(event.tokens)
        if not self._ask.details:
            return []
        return [Delta(self._index, event=event, totals=dataclasses.replace(self._totals), count=self._text.count)]

    def _last_alone(self) -> list[Delta]:
        """What no target confirmed; it ended for want of room if it did not end by itself."""
        out = self._tokens(tuple(Token(token, Origin.UNVERIFIED) for token in self._alone))
        if not self.over and self._text.count >= self._most and self._alone[-1] not in self._ends:
            self._reason = "length"
        return out

    def _tokens(self, tokens: tuple[Token, ...]) -> list[Delta]:
        out = []
        for token in tokens:
            self._unverified = self._unverified or token.origin is Origin.UNVERIFIED
            piece = self._text.push(token)
            if piece:
                out.append(self._delta(piece))
            if self.over:
                self._reason = "stop"
                break
        out = out if self._ask.smooth else _joined(out)
        if out and self._ask.details:
            out[-1] = dataclasses.replace(out[-1], totals=dataclasses.replace(self._totals), count=self._text.count)
        return out

    def close(self) -> list[Delta | End]:
        """The rest, and the end."""
        out: list[Delta | End] = []
        piece = Piece() if self._enough_calls else self._text.finish()
        parts = self._delta(piece).parts if piece else ()
        if self._reader is not None and not self._enough_calls:
            parts += tuple(self._reader.finish())
        if parts or piece:
            out.append(Delta(self._index, parts, piece.tokens))
        calls = self._reader is not None and self._reader.calls > 0
        reason = "tool_calls" if calls and self._reason == "stop" else self._reason
        # The session goes on counting until it is gone; what is told is what this answer cost.
        totals = dataclasses.replace(self._totals)
        return [*out, End(self._index, reason, self._text.count, self._unverified, totals)]

    def _delta(self, piece: Piece) -> Delta:
        if self._reader is None:
            return Delta(self._index, (piece.text,) if piece.text else (), piece.tokens)
        return Delta(self._index, tuple(self._reader.push(piece.text)), piece.tokens)


def _joined(deltas: list[Delta]) -> list[Delta]:
    """One delta of what came together."""
    if len(deltas) < 2:
        return deltas
    parts: list[str | CallDelta] = []
    for part in (part for delta in deltas for part in delta.parts):
        last = parts[-1] if parts else None
        if isinstance(part, str) and isinstance(last, str):
            parts[-1] = last + part
        else:
            parts.append(part)
    tokens = tuple(token for delta in deltas for token in delta.tokens)
    return [Delta(deltas[0].choice, tuple(parts), tokens)]
