"""Who is drafted for in the cloud, before a step and while one runs, and how far.

Rules:
    * Prompt lookup for every session that would run without a draft: it costs nothing but rows that are free.
    * The draft model, if there is one, below the likeliest leaf of whoever gains: its own nodes, a lookup's or the
      edge's. A round is run for as many as pay for it, and while it is expected to bring tokens faster than the step
      does without: sum of gains > tokens expected so far / (time of the step + time drafted) x time of a round. What
      is expected counts everyone who shares the step, and a guess gains what it is worth above what its row would run.
    * A text that it has not read yet is read before a step only if that takes a part of the step; else beside steps,
      those that read the prompt for the target included.
    * While the target's step runs, it drafts on (`ahead`), as far as there is time; the fuller the steps, the more a
      guess must win for the time that it takes.
    * It rests for sessions whose device keeps up: whose drafts come sooner than the model's own would, or, where steps
      are full, so soon that others use the time; and for all whose device drafts, while edges fill the rows.
    * Lookup fills only rows that would stay empty; a guess of the model may displace what is worth less. As edges fill
      the rows with worthy nodes, the work goes back to the edges.
    * A draft model that fails is let go: sessions lose its drafts, nothing else.
    * The last token of an answer is the target's own: nothing is drafted for it.

Survival of a guess comes from its margin (a lookup's: its run), by calibrations that all sessions share.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

import structlog

from outrider_cloud.drafts.ahead import DraftAhead
from outrider_cloud.drafts.growth import EXPECTED, Growth, Rows
from outrider_cloud.drafts.lookup import PromptLookup
from outrider_cloud.engine.events import Source
from outrider_cloud.engine.schedule import SOON, WORTH_A_ROW
from outrider_shared.calibration import Calibrations
from outrider_shared.sampling.rule import Guess
from outrider_shared.tree import UNNUMBERED

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    from outrider_cloud.drafts.model import Ask, GuessModel
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.engine.schedule import Work
    from outrider_cloud.engine.session import Judged, Session
    from outrider_shared.ids import SessionId
    from outrider_shared.tree import Node

_log = structlog.get_logger(__name__)

LOOKUP = "lookup"
_WIDTH = 2
# With a draft model at hand, a lookup must be this sure to go first.
_SURE = 0.85
# Reading for less than this part of a step is done before it, and wins several tokens at once.
_READ_SHARE = 0.5
# What the model drafts for a step takes about as many rounds.
_ROUNDS = 8
# Edges that fill so much of a step's rows are left to draft alone.
_FULL = 0.95
# Ahead of a step, too: 0.02 asked for a fifth more, and nothing came of it.
_LEAST_AHEAD = 0.1


def source_of(node: Node) -> Source:
    """Who drafted a node; one that the edge drafted, too, is the edge's."""
    if node.number != UNNUMBERED:
        return Source.EDGE
    return Source.LOOKUP if node.guess is not None and node.guess.source == LOOKUP else Source.MODEL


def _own_nodes(work: Work) -> int:
    return sum(1 for node in work.nodes if node.number == UNNUMBERED)


def _worth_asking(model: GuessModel, growths: Sequence[Growth], rows: Rows, tokens_per_s: float) -> list[Growth]:
    """Whom a round is run for: as many, those who gain most first, as win most above what its time is worth."""
    best, asking, gained = 0.0, list[Growth](), 0.0
    ranked = sorted((g for g in growths if g.gain > 0.0), key=lambda g: -g.gain)
    for count, growth in enumerate(ranked, 1):
        if count > rows.below(growth.reach * EXPECTED):
            break
        gained += growth.gain
        if (worth := gained - tokens_per_s * model.seconds(count)) > best:
            best, asking = worth, ranked[:count]
    return asking


class CloudDrafts:
    """Drafts for the sessions of one engine.

    Args:
        config: The engine's.
        model: None drafts by lookup alone.
        clock: Seconds, monotonic.
        executor: Runs what is drafted ahead; by default a thread.

    Attributes:
        calibration: Margin to survival, of all sessions.
        ahead: Drafts while a step runs; None without a model.
        rounds: Forwards of the draft model that a step waited for, so far.
    """

    def __init__(
        self,
        config: EngineConfig,
        model: GuessModel | None = None,
        clock: Callable[[], float] = time.monotonic,
        executor: Executor | None = None,
    ) -> None:
        self._config, self._model = config, model
        self._lookups: dict[SessionId, PromptLookup] = {}
        self._ended: list[SessionId] = []
        self.calibration = Calibrations()
        self.ahead = None if model is None else DraftAhead(model, self.calibration, clock, executor)
        self.rounds = 0
        # Of the last step: how full beyond a half, what it brings, and what its least node was worth.
        self._scarcity = self._tokens_per_s = self._displaced = 0.0
        self._edges_fill = False

    @property
    def has_model(self) -> bool:
        """Whether there is a draft model."""
        return self._model is not None

    def own_s(self, step_s: float) -> float:
        """Drafts of a device that come later than this after a commit are as well made here; infinite without a model.

        While steps have rows to spare that is what the model takes for them. The fuller the steps, the more of the time
        that a session waits is of use to others.
        """
        return math.inf if self._model is None else _ROUNDS * self._model.seconds(1) + self._scarcity * step_s

    def gather(self) -> None:
        """Hang what was drafted ahead into the trees; call it before anybody looks whether they are empty."""
        if self.ahead is None:
            return
        try:
            self.ahead.gather()
        except Exception:  # noqa: BLE001 - whatever a model throws
            self._let_go()
        for session_id in self._ended:
            self.forget(session_id)
        self._ended.clear()

    def fill(self, ready: Sequence[Session], step_s: float) -> float:
        """Hang own nodes into the trees of sessions that are about to run; returns the seconds that it took.

        What a round of the model is worth is not known before the first step, so the model waits for it.
        """
        started = time.perf_counter()
        decoding = [s for s in ready if s.sure_rows == 1]
        drafted_for = [s for s in decoding if s.request.own_drafts]
        free = self._config.rows - sum(s.sure_rows for s in ready)
        room = free - sum(min(s.tree.pending, self._config.max_draft_rows) for s in decoding)
        for session in drafted_for:
            if room > 0 and not session.tree.children:
                room -= self._look_up(session, room)
        left = self._left_to_model(drafted_for, step_s)
        if self._model is not None and left and free > 0 and step_s > 0.0:
            self._draft(self._model, left, decoding, Rows(free), step_s)
        return time.perf_counter() - started

    def begin(self, works: Sequence[Work], step_s: float) -> None:
        """Draft on below what is about to run, until the step ends."""
        used, own = sum(work.rows for work in works), sum(_own_nodes(work) for work in works)
        self._scarcity = max(0.0, 2.0 * used / self._config.rows - 1.0)
        self._edges_fill = used - own >= _FULL * self._config.rows
        if self.ahead is None or self._model is None:
            return
        sessions = self._left_to_model([work.session for work in works if work.session.request.own_drafts], step_s)
        if not sessions:
            return
        # The fuller the steps, the more a guess must win for its time, and for the row that it takes.
        price = self._tokens_per_s * self._model.seconds(len(sessions)) / len(sessions) + self._displaced
        least, rows = max(_LEAST_AHEAD, self._scarcity * price / EXPECTED), self._config.max_draft_rows
        self.ahead.begin(lambda: [Growth(session, rows, least) for session in sessions], step_s)

    def end(self, works: Sequence[Work]) -> None:
        """The step is over: no further round."""
        if self.ahead is not None:
            self.ahead.end(alike=all(work.sure == 1 for work in works))

    def learn(self, judged: Sequence[Judged]) -> None:
        """A step judged draft nodes; those of our own teach the calibrations."""
        for node, _, hit in judged:
            if node.survival is not None and node.guess is not None:
                self.calibration.observe(node.guess, hit=hit)

    def forget(self, session_id: SessionId) -> None:
        """A session ended."""
        self._lookups.pop(session_id, None)
        if self.ahead is not None and self.ahead.running:
            self._ended.append(session_id)
        elif self._model is not None:
            self._model.forget(session_id)

    def _left_to_model(self, sessions: Sequence[Session], step_s: float) -> list[Session]:
        """Whose devices do not keep up; where edges fill the rows, only who has none that drafts."""
        if self._edges_fill:
            return [session for session in sessions if session.response_s is None]
        soon_s = min(SOON * step_s, self.own_s(step_s))
        return [session for session in sessions if not session.keeps_up(soon_s)]

    def _look_up(self, session: Session, room: int) -> int:
        """Hang what followed the same words before; returns how many nodes."""
        index = self._lookups.get(session.request.session_id)
        if index is None:
            index = self._lookups[session.request.session_id] = PromptLookup(session.log)
        most = min(room, self._config.max_draft_rows, session.draftable)
        tokens, run = index.continuation(most)
        least = _SURE if self._model is not None else 0.0
        node, reach = None, 1.0
        for count, token in enumerate(tokens):
            guess = Guess((token,), (0.0,), float(run + count), LOOKUP)
            survival = self.calibration.survival_of(guess)
            reach *= survival
            if survival < least or reach < WORTH_A_ROW:
                return count
            node = session.tree.grow(token, node, survival, guess)
        return len(tokens)

    def _draft(
        self, model: GuessModel, left: Sequence[Session], decoding: Sequence[Session], rows: Rows, step_s: float
    ) -> None:
        """Draft for those `left` to the model, as far as it pays; all who are `decoding` share the rows."""
        most = self._config.max_draft_rows
        growths = {id(session): Growth(session, most, WORTH_A_ROW, rows) for session in decoding}
        drafted_for = [growths[id(session)] for session in left]
        drafted_for = [g for g in drafted_for if g.gain > 0.0 and model.reading_s(g.ask()) <= _READ_SHARE * step_s]
        spent_s = 0.0
        while self._model is not None:
            expected = len(decoding) + rows.tokens
            asking = _worth_asking(model, drafted_for, rows, expected / (step_s + spent_s))
            if not asking:
                break
            self.rounds += 1
            for growth, guess in zip(asking, self._guesses(model, [g.ask() for g in asking]), strict=True):
                growth.take(guess, self.calibration.survival_of)
            spent_s += model.seconds(len(asking))
        self._tokens_per_s = (len(decoding) + rows.tokens) / (step_s + spent_s)
        self._displaced = rows.least
        for growth in drafted_for:
            growth.graft(self.calibration)

    def _guesses(self, model: GuessModel, asks: Sequence[Ask]) -> Sequence[Guess | None]:
        try:
            return model.guess(asks, _WIDTH)
        except Exception:  # noqa: BLE001 - whatever a model throws; nobody needs it for the text
            self._let_go()
            return [None] * len(asks)

    def _let_go(self) -> None:
        _log.exception("the draft model failed; going on without it")
        self._model = self.ahead = None
