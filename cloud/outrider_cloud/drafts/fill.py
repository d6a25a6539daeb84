"""Who is drafted for in the cloud before a step, and how far.

Rules:
    * Prompt lookup for every session that would run without a draft: it costs nothing but rows that are free.
    * The draft model, if there is one, below the best path of whoever gains: its own nodes, a lookup's or the edge's. A
      round (one forward for all of them) is run while it is expected to bring tokens faster than the step does without:
      sum of reach x survival > tokens expected so far / (time of the step + time drafted) x time of a round.
    * Only rows that would stay empty are filled. As edges fill them, the work goes back to the edges.
    * A draft model that fails is let go: sessions lose its drafts, nothing else.
    * The last token of an answer is the target's own: nothing is drafted for it.

Survival of a guess comes from its margin (a lookup's: its run), by calibrations that all sessions share.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import structlog

from outrider_cloud.drafts.lookup import PromptLookup
from outrider_cloud.drafts.model import Ask
from outrider_cloud.engine.events import Source
from outrider_shared.calibration import Calibrations
from outrider_shared.sampling.rule import Guess
from outrider_shared.tree import UNNUMBERED

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.session import Judged, Session
    from outrider_shared.ids import SessionId
    from outrider_shared.tree import Node

_log = structlog.get_logger(__name__)

LOOKUP = "lookup"
# A node that is committed with less than this probability is not worth a row, however free.
_LEAST_REACH = 0.1
_WIDTH = 2
# Of the probability that the best candidate leaves, how much the next one takes (measured on the bundled pair).
_NEXT_BEST_SHARE = 0.6
# With a draft model at hand, a lookup must be this sure to go first.
_SURE = 0.85
# Survival of the next guess, before it is made.
_EXPECTED = 0.75


def source_of(node: Node) -> Source:
    """Who drafted a node; one that the edge drafted, too, is the edge's."""
    if node.number != UNNUMBERED:
        return Source.EDGE
    return Source.LOOKUP if node.guess is not None and node.guess.source == LOOKUP else Source.MODEL


class GuessModel(Protocol):
    """What `fill` needs of a draft model."""

    round_s: float

    def guess(self, asks: Sequence[Ask], width: int) -> list[Guess | None]:
        """One guess per question, None where it has nothing to say."""

    def forget(self, session_id: SessionId) -> None:
        """Free what is held for a session."""


@dataclass(slots=True)
class _Tip:
    """Where a session's drafts end.

    Attributes:
        node: The deepest node of the best path; None is the log's end.
        tail: Tokens down to it.
        reach: Probability that it is committed.
        tokens: Tokens that the step is expected to commit for the session.
    """

    session: Session
    node: Node | None
    tail: list[int]
    reach: float
    tokens: float


class CloudDrafts:
    """Drafts for the sessions of one engine.

    Args:
        config: The engine's.
        model: None drafts by lookup alone.

    Attributes:
        calibration: Margin to survival, of all sessions.
        rounds: Forwards of the draft model so far.
    """

    def __init__(self, config: EngineConfig, model: GuessModel | None = None) -> None:
        self._config, self._model = config, model
        self._lookups: dict[SessionId, PromptLookup] = {}
        self.calibration = Calibrations()
        self.rounds = 0

    @property
    def has_model(self) -> bool:
        """Whether there is a draft model."""
        return self._model is not None

    def fill(self, ready: Sequence[Session], step_s: float) -> float:
        """Hang own nodes into the trees of sessions that are about to run; returns the seconds that it took."""
        started = time.perf_counter()
        room = self._config.rows - sum(s.sure_rows for s in ready)
        decoding = [s for s in ready if s.sure_rows == 1]
        room -= sum(min(s.tree.pending, self._config.max_draft_rows) for s in decoding)
        tips = [self._tip(s) for s in decoding if s.request.own_drafts]
        for tip in tips:
            if tip.node is None and room > 0:
                room -= self._look_up(tip, room)
        if self._model is not None:
            self._draft(self._model, tips, room, step_s)
        return time.perf_counter() - started

    def learn(self, judged: Sequence[Judged]) -> None:
        """A step judged draft nodes; those of our own teach the calibrations."""
        for node, _, hit in judged:
            if node.survival is not None and node.guess is not None:
                self.calibration.observe(node.guess, hit=hit)

    def forget(self, session_id: SessionId) -> None:
        """A session ended."""
        self._lookups.pop(session_id, None)
        if self._model is not None:
            self._model.forget(session_id)

    def _look_up(self, tip: _Tip, room: int) -> int:
        """Hang what followed the same words before; returns how many nodes."""
        session = tip.session
        index = self._lookups.get(session.request.session_id)
        if index is None:
            index = self._lookups[session.request.session_id] = PromptLookup(session.log)
        most = min(room, self._config.max_draft_rows, session.draftable)
        tokens, run = index.continuation(most)
        least = _SURE if self._model is not None else 0.0
        for count, token in enumerate(tokens):
            guess = Guess((token,), (0.0,), float(run + count), LOOKUP)
            survival = self.calibration.survival_of(guess)
            if survival < least or tip.reach * survival < _LEAST_REACH:
                return count
            self._hang(tip, token, survival, guess)
        return len(tokens)

    def _draft(self, model: GuessModel, tips: list[_Tip], room: int, step_s: float) -> None:
        spent_s, expected = 0.0, sum(tip.tokens for tip in tips)
        while room > 0:
            asking = [t for t in tips if t.reach * _EXPECTED >= _LEAST_REACH and len(t.tail) < t.session.draftable]
            asking = sorted(asking, key=lambda t: -t.reach)[:room]
            gain = sum(tip.reach for tip in asking) * _EXPECTED
            if not asking or gain * (step_s + spent_s) <= expected * model.round_s:
                return
            self.rounds += 1
            asks = [Ask(t.session.request.session_id, t.session.log, t.tail, t.session.request.params) for t in asking]
            for tip, guess in zip(asking, self._guesses(model, asks), strict=True):
                if guess is None or not guess.tokens:
                    tips.remove(tip)
                    continue
                expected -= tip.tokens
                room -= self._branch(tip, guess)
                expected += tip.tokens
            spent_s += model.round_s

    def _guesses(self, model: GuessModel, asks: Sequence[Ask]) -> Sequence[Guess | None]:
        try:
            return model.guess(asks, _WIDTH)
        except Exception:  # noqa: BLE001 - whatever a model throws; nobody needs it for the text
            _log.exception("the draft model failed; going on without it")
            self._model = None
            return [None] * len(asks)

    def _branch(self, tip: _Tip, guess: Guess) -> int:
        """Hang a guess below a tip, worthwhile second bests beside it; returns how many nodes."""
        survival = self.calibration.survival_of(guess)
        left, above, count = tip.reach * (1.0 - survival), tip.node, 1
        for token in guess.tokens[1:]:
            left *= _NEXT_BEST_SHARE
            if left < _LEAST_REACH:
                break
            tip.session.tree.grow(token, above, left / tip.reach)
            tip.tokens += left
            count += 1
        self._hang(tip, guess.tokens[0], survival, guess)
        return count

    @staticmethod
    def _hang(tip: _Tip, token: int, survival: float, guess: Guess) -> None:
        tip.node = tip.session.tree.grow(token, tip.node, survival, guess)
        tip.tail.append(token)
        tip.reach *= survival
        tip.tokens += tip.reach

    @staticmethod
    def _tip(session: Session) -> _Tip:
        """The end of the path of likeliest nodes."""
        tip = _Tip(session, None, [], 1.0, 1.0)
        children = session.tree.children
        while children and len(tip.tail) < session.draftable:
            node, survival = session.likeliest(children.values(), len(tip.tail) + 1)
            tip.node, tip.reach = node, tip.reach * survival
            tip.tail.append(node.token)
            tip.tokens += tip.reach
            children = node.children
        return tip
