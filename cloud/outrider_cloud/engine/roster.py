"""Who is here: sessions opened, resumed, given drafts, parked, and gone again. What they run is the engine's business.

Single-threaded, as the engine is. What an earlier step committed for a session is told before its end is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_cloud.engine.checks import check_request, check_tree
from outrider_cloud.engine.events import Committed, Failed, Finish, Opened, Request, Sink, Source
from outrider_cloud.engine.habits import Habits
from outrider_cloud.engine.ledger import Ledger
from outrider_cloud.engine.memory import KvMemory
from outrider_cloud.engine.session import Session, State
from outrider_shared import wire
from outrider_shared.errors import LimitError, OutriderError, ProtocolError
from outrider_shared.tree import DraftTree

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_cloud.drafts.fill import CloudDrafts
    from outrider_cloud.engine.blocks import BlockPool
    from outrider_cloud.engine.config import EngineConfig
    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.ids import SessionId
    from outrider_wire.v1 import verifier_pb2 as pb


class Roster:
    """The sessions of an engine, with their memory.

    Args:
        loaded: The model that they ask.
        config: Sizes and policies.
        drafts: Drafts of the cloud's own.
        clock: Seconds, monotonic.
    """

    def __init__(
        self, loaded: LoadedModel, config: EngineConfig, drafts: CloudDrafts, clock: Callable[[], float]
    ) -> None:
        self.config = config
        self.memory = KvMemory(config)
        self.sessions: dict[SessionId, Session] = {}
        self.habits = Habits()
        self.drafts = drafts
        self._loaded = loaded
        self._clock = clock
        self._arrivals = 0
        self._ledger = Ledger()

    @property
    def pool(self) -> BlockPool:
        """The KV blocks."""
        return self.memory.pool

    def open(self, request: Request, sink: Sink) -> None:
        """Accept a session; its sink gets `Opened` at once.

        Raises:
            PromptError: if the prompt or a committed token cannot be run by this model.
            LimitError: if there are too many sessions, or this one could never fit into the KV memory.
            ProtocolError: if the id is in use.
        """
        if request.session_id in self.sessions:
            raise ProtocolError(f"session {request.session_id} is open already")
        live = sum(1 for s in self.sessions.values() if s.state is not State.FINISHED)
        if live >= self.config.max_sessions:
            raise LimitError(f"{live} sessions are open", hint="this service takes no more; try later")
        check_request(request, self._loaded, self.config)
        self._arrivals += 1
        session = Session(request, self._arrivals, sink)
        session.hold_since = self._clock()
        self.habits.begin(session)
        self.sessions[request.session_id] = session
        self.memory.admit(self.sessions.values())
        sink(Opened(request.session_id, len(session.log), session.computed))
        if request.committed:
            self._finish_if_due(session)

    def resume(self, session_id: SessionId, committed: Sequence[int], sink: Sink) -> bool:
        """Give a held session to a new stream, which numbers its nodes from 0 again.

        Returns:
            Whether the session is held and its log agrees with what the new stream knows; if not, nothing changed.
        """
        session = self.sessions.get(session_id)
        known = [] if session is None else [*session.request.prompt, *committed]
        if session is None or session.log[: len(known)] != known or len(known) < session.opened_at:
            return False
        self.tell()
        session.tree = DraftTree(session.log)
        session.forget_hint()
        session.sink, session.lease_end = sink, float("inf")
        session.hold_since, session.more_drafts = self._clock(), False
        sink(Opened(session_id, len(session.log), min(session.computed, len(session.request.prompt))))
        if session.finish is not None:
            sink(self._committed(session, len(known), steps=0))
            self._drop(session)
            return True
        session.state = State.RUNNING if session.blocks else State.WAITING
        if len(session.log) > len(known):
            sink(self._committed(session, len(known), steps=0))
        return True

    def park(self, session_id: SessionId) -> None:
        """The stream broke: keep the session, without a place in the schedule, until its lease ends."""
        session = self.sessions.get(session_id)
        if session is None:
            return
        session.lease_end = self._clock() + self.config.lease_s
        session.sink = _nowhere
        if session.state is not State.FINISHED:
            session.state = State.PARKED

    def close(self, session_id: SessionId) -> None:
        """Forget a session and free its memory; an unknown id is no error, it may have ended by itself."""
        session = self.sessions.get(session_id)
        if session is not None:
            self._drop(session)

    def cancel(self, session_id: SessionId) -> None:
        """End a session as its owner asked; the last event says so."""
        session = self.sessions.get(session_id)
        if session is not None and session.finish is None:
            self.tell()
            session.finish = Finish.CANCELLED
            session.sink(self._committed(session, len(session.log), steps=0))
            self._drop(session)

    def draft(self, session_id: SessionId, message: pb.Draft, arrived: float | None = None) -> None:
        """Append draft nodes; whatever is wrong with them ends this session with an error event.

        Args:
            session_id: Whose.
            message: The nodes.
            arrived: When the message came, by the engine's clock; it may have waited for the end of a step.
        """
        session = self.sessions.get(session_id)
        if session is None or session.state is State.FINISHED:
            return
        try:
            first = len(session.tree)
            wire.append_draft(session.tree, message, self._loaded.vocabulary)
            session.note_late(first)
            check_tree(session, self.config)
        except OutriderError as error:
            self._fail(session, error)
            return
        session.more_drafts = message.more
        if message.tokens:
            session.note_draft(message.anchor, self._clock() if arrived is None else arrived)
        session.no_drafts = not message.more and not message.tokens

    def tell(self) -> None:
        """Send the events of what was committed, and learn from it."""
        self._ledger.close(self.drafts)

    def _committed(
        self, session: Session, known: int, *, steps: int = 1, origins: tuple[Source, ...] = ()
    ) -> Committed:
        """The event for the log's tokens from index `known` on."""
        node = session.tree.last_agreed
        agreed = node is not None and node.position >= known
        return Committed(
            session.request.session_id,
            tuple(session.log[known:]),
            len(session.log),
            accepted=node.number if agreed and node is not None else -1,
            known=node.position + 1 - known if agreed and node is not None else 0,
            steps=steps,
            origins=origins,
            hint=session.fresh_hint(),
            finish=session.finish,
            logprobs=tuple(session.logprobs[known - session.opened_at :]),
            usage=session.usage if session.finish is not None else None,
            refused=session.take_refused(),
        )

    def _finish_if_due(self, session: Session) -> None:
        session.finish = session.finish_of(self._loaded.eos, self._loaded.context_length)
        if session.finish is not None:
            session.sink(self._committed(session, len(session.log), steps=0))
            self._retire(session)

    def _retire(self, session: Session) -> None:
        """Free a finished session's KV (full blocks stay in the prefix cache) and keep its log for a late resume."""
        session.drop_kv(self.pool)
        self.habits.end(session)
        self.drafts.forget(session.request.session_id)
        session.state = State.FINISHED
        session.lease_end = min(session.lease_end, self._clock() + self.config.lease_s)

    def _fail(self, session: Session, error: OutriderError) -> None:
        self.tell()
        session.sink(Failed(session.request.session_id, error))
        self._drop(session)

    def _drop(self, session: Session) -> None:
        session.drop_kv(self.pool)
        self.drafts.forget(session.request.session_id)
        session.state = State.FINISHED
        del self.sessions[session.request.session_id]

    def _expire(self, now: float) -> None:
        for session in [s for s in self.sessions.values() if now >= s.lease_end]:
            self._drop(session)


def _nowhere(_: object) -> None:
    """Sink of a session without a stream."""
