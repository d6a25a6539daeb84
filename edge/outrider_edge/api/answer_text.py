"""One answer as it is shown: whole characters, cut at stop strings, each token with the text that it stands for.

Rules:
    * A token is told when all of its text is out; text that is held back (half characters, half stop strings) holds
      its tokens back, too.
    * At a stop string, the token that completed it is the last one counted, as plain decoding would have stopped
      there; told are the tokens that have text before the match.
    * Control tokens are counted, not told.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_edge.api.stops import StopScanner
from outrider_edge.api.token_text import TextStream

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.api.token_text import Vocabulary
    from outrider_edge.session.events import Token


@dataclass(frozen=True, slots=True)
class Told:
    """A token and the part of the answer's text that it stands for.

    A character that is split over tokens belongs to the last of them; the others have an empty text.
    """

    token: Token
    text: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer.

    Attributes:
        text: What to append.
        tokens: Whose text is complete with it.
    """

    text: str = ""
    tokens: tuple[Told, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)


class AnswerText:
    """Assembles one answer.

    Args:
        vocabulary: Bytes of tokens.
        stops: Stop strings.
        shown: Control tokens that are part of the text.

    Attributes:
        count: Tokens that count as generated.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str] = (), shown: frozenset[int] = frozenset()) -> None:
        self._stream = TextStream(vocabulary, shown)
        self._scanner = StopScanner(stops)
        self._waiting: deque[tuple[int, int, Told]] = deque()  # [start, end) in characters of the uncut text
        self._seen = self._out = 0
        self.count = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; nothing comes after it."""
        return self._scanner.matched is not None

    def push(self, token: Token) -> Piece:
        """Take one token; what can be told now."""
        self.count += 1
        if self._stream.hides(token.id):
            return Piece()
        start, fresh = self._seen, self._stream.push(token.id)
        self._seen += len(fresh)
        self._waiting.append((start, self._seen, Told(token, fresh)))
        return self._release(self._scanner.push(fresh))

    def finish(self) -> Piece:
        """The answer is over; the rest."""
        if self.stopped:
            return Piece()
        rest = self._scanner.push(self._stream.flush())
        rest += self._scanner.flush()
        self._out += len(rest)
        told = [one for _, _, one in self._waiting]
        self._waiting.clear()
        missing = rest[sum(len(one.text) for one in told) :]
        if told and missing:  # half a character at the very end
            told[-1] = Told(told[-1].token, told[-1].text + missing)
        return Piece(rest, tuple(told))

    def _release(self, text: str) -> Piece:
        self._out += len(text)
        told = []
        while self._waiting:
            start, end, one = self._waiting[0]
            # A token that ends where its text does may be half a character: it waits for the rest of it.
            whole = end <= self._out and end > start
            half = start == end < self._out
            if not (whole or half or (self.stopped and start < self._out)):
                break
            told.append(one if end <= self._out else Told(one.token, one.text[: self._out - start]))
            self._waiting.popleft()
        if self.stopped:
            self._waiting.clear()
        return Piece(text, tuple(told))
