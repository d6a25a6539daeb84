"""What a device does without the cloud, and the tokens that it shows on its own.

Rules:
    * The clock is the time since the cloud was last heard of, by a commit or an answer to a ping.
    * Tokens drafted alone hang behind the log. They are shown as unverified, and only here.
    * When the cloud is back they go up as ordinary drafts. What it commits of them is verified; from the first token on
      where it chose otherwise, all are taken back.
    * Committed text is never touched.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_edge.session.events import Retracted, SessionEvent, Token, Tokens, Unverified, Verified
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.session.events import GenerateRequest
    from outrider_shared.sampling.rule import Guess


class OfflineMode(enum.StrEnum):
    """What to do when the cloud has been away for `after_s`."""

    ERROR = "error"  # the answer fails
    WAIT = "wait"  # go on trying, as long as the caller likes
    DRAFT = "draft"  # answer with the draft model alone, marked as unverified


@dataclass(frozen=True, slots=True)
class OfflinePolicy:
    """How long to do without the cloud, and what then.

    Attributes:
        mode: What then.
        after_s: Silence of the cloud after which it counts as away.
        settle_s: With `draft`: how long a complete but unverified answer waits for the cloud before it ends as it is.
    """

    mode: OfflineMode = OfflineMode.ERROR
    after_s: float = 15.0
    settle_s: float = 30.0

    def __post_init__(self) -> None:
        if not (self.after_s >= 0 and self.settle_s >= 0):
            raise ConfigError(f"offline after {self.after_s} s, settling for {self.settle_s} s")


class Alone:
    """The unverified tokens of one session.

    Args:
        request: What is generated.
        eos: The model's own end tokens.
    """

    def __init__(self, request: GenerateRequest, eos: frozenset[int] = frozenset()) -> None:
        self._most = request.max_tokens
        self._ends = frozenset(request.stop) | (frozenset() if request.ignore_eos else eos)
        self.tokens: list[int] = []
        self.guesses: list[Guess | None] = []
        self.ended = False

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def begin(self, committed: int) -> None:
        """Take up (again) where the log and the tokens shown so far end."""
        self.ended = committed + len(self.tokens) >= self._most or bool(self.tokens and self.tokens[-1] in self._ends)

    def extend(self, drafts: Sequence[tuple[int, Guess | None]], committed: int) -> list[SessionEvent]:
        """Show tokens up to the answer's end."""
        shown: list[int] = []
        for token, guess in drafts:
            if self.ended:
                break
            self.tokens.append(token)
            self.guesses.append(guess)
            shown.append(token)
            self.begin(committed)
        return [Unverified(tuple(shown))] if shown else []

    def settle(self, tokens: Sequence[Token], *, finished: bool) -> list[SessionEvent]:
        """What a commit makes of the tokens shown: events for all of it, in order."""
        agreed = 0
        while agreed < min(len(tokens), len(self.tokens)) and tokens[agreed].id == self.tokens[agreed]:
            agreed += 1
        events: list[SessionEvent] = []
        if agreed:
            events.append(Verified(tuple(tokens[:agreed])))
            del self.tokens[:agreed], self.guesses[:agreed]
        if self.tokens and (agreed < len(tokens) or finished):
            events.append(Retracted(len(self.tokens)))
            self.tokens, self.guesses, self.ended = [], [], False
        if agreed < len(tokens):
            events.append(Tokens(tuple(tokens[agreed:])))
        return events
