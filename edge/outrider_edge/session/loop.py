"""One answer's conductor: draft, send, take over what was committed, and go on whatever happens to the line.

It shares an event loop with the line's tasks, which only move messages. A commit is handled before the next draft step
starts; a draft step never waits for the network.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from outrider_edge.session.control import Control
from outrider_edge.session.departure import Departures
from outrider_edge.session.events import (
    Drafted,
    DraftedNode,
    Finished,
    Offline,
    Online,
    Pace,
    Reconnecting,
    SessionEvent,
    Settling,
)
from outrider_edge.session.line import Broken, Connected, Line
from outrider_edge.session.offline import Alone, OfflineMode, OfflinePolicy
from outrider_edge.session.opening import open_message
from outrider_edge.session.plan import Action, plan
from outrider_edge.session.worth import crowding
from outrider_shared.errors import InternalError, MismatchError, OutriderError, SessionExistsError, UnavailableError
from outrider_shared.ids import new_session_id
from outrider_shared.wire import (
    FRAME_BYTES,
    draft_to_wire,
)
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from outrider_edge.draft.runner import DraftRunner
    from outrider_edge.session.line import Item
    from outrider_edge.session.memory import Clouds, Prefix
    from outrider_edge.session.state import SessionState
    from outrider_shared.drafting.drafter import Drafter
    from outrider_shared.tree import Node

# Finest that clocks are compared: a wait of what rounding leaves would be none.
_TICK_S = 0.001


class SessionLoop:
    """Drives one session to its end.

    Args:
        state: The session.
        tokenizer_sha256: Fingerprint of the device's tokenizer, hex.
        line: The way to the cloud, not started.
        drafter: None decodes plainly.
        runner: Where draft passes run.
        offline: What to do without the cloud.
        alone: The tokens that are shown without it.
        clouds: What the device remembers of clouds.
    """

    def __init__(
        self,
        state: SessionState,
        tokenizer_sha256: str,
        line: Line,
        drafter: Drafter | None,
        runner: DraftRunner,
        offline: OfflinePolicy,
        alone: Alone,
        clouds: Clouds,
    ) -> None:
        self._state = state
        self._session_id = new_session_id()
        self._tokenizer_sha256 = tokenizer_sha256
        self._line = line
        self._drafter, self._runner = drafter, runner
        self._offline, self._alone = offline, alone
        self._logs, self._measured = clouds.logs, clouds.measured
        self._control = Control(state.policy, held=state.request.pace is Pace.HOLD)
        self._departures = Departures(self._control.known)
        self._peer = ""
        self._prefix: Prefix | None = None
        self._connected = self._away = False
        self._unsent_since = self._progress_at = self._ended_at = 0.0
        self._trace: deque[Drafted] = deque()
        self._last_error: OutriderError | None = None

    async def run(self) -> AsyncGenerator[SessionEvent]:
        """Yield events, the last one being `Finished`.

        Raises:
            OutriderError: what the cloud refused, or `UnavailableError` when it stayed away too long.
        """
        line, state = self._line, self._state
        line.start()
        self._progress_at = line.heard_at
        try:
            while True:
                while line.inbox:
                    at, item = line.inbox.popleft()
                    for event in self._handle(item, at):
                        yield event
                if line.failure is not None:
                    raise InternalError(f"the line to the cloud failed: {line.failure!r}") from line.failure
                for event in self._check_away():
                    yield event
                while self._trace:
                    yield self._trace.popleft()
                self._steer()
                drafting = self._drafter is not None and not self._alone and not self._away
                action = plan(
                    state,
                    connected=self._connected,
                    drafting=drafting,
                    unsent_s=self._unsent_s(),
                    leave_in_s=self._leave_in_s(),
                )
                if action is Action.DONE:
                    yield self._finished()
                    return
                if self._away and not self._alone.ended and self._offline.mode is OfflineMode.DRAFT:
                    for event in await self._draft_alone():
                        yield event
                else:
                    await self._act(action)
        finally:
            # A caller that lost interest before the end has the session cancelled.
            last = pb.DecodeRequest(cancel=pb.Cancel()) if state.finish is None else None
            await line.stop(last, wait=not self._away)

    # ---- acting -------------------------------------------------------------------------------------------------

    async def _act(self, action: Action) -> None:
        if action is Action.SEND:
            self._send_drafts()
        elif action is Action.DRAFT:
            await self._draft()
        else:
            await self._line.wait(self._next_check_s())

    async def _draft(self) -> None:
        state, drafter = self._state, self._drafter
        assert drafter is not None
        if len(state.tree) == state.sent:
            self._unsent_since = self._now()
        guess, taken_s = await self._runner.propose(drafter, state.path(), state.request.params, state.policy.width)
        state.totals.draft_s += taken_s
        state.totals.draft_steps += 1
        self._control.note_pass(taken_s)
        state.grow(guess)
        await asyncio.sleep(0)

    def _steer(self) -> None:
        """Draft as far as the link, as it is now, makes worthwhile."""
        while self._line.pings:
            taken_s, sent_at, opening = self._line.pings.popleft()
            self._control.note_ping(taken_s, sent_at, opening=opening)
        state = self._state
        state.policy = self._control.policy(crowding(state.tree.pending, state.max_nodes, state.most_nodes))

    async def _draft_alone(self) -> list[SessionEvent]:
        state, drafter, alone = self._state, self._drafter, self._alone
        assert drafter is not None
        guess, taken_s = await self._runner.propose(drafter, state.log + alone.tokens, state.request.params, 1)
        state.totals.draft_s += taken_s
        state.totals.draft_steps += 1
        await asyncio.sleep(0)
        if guess is None or not guess.tokens:
            alone.ended = True
            return []
        return alone.extend([(guess.tokens[0], guess)], len(state.committed))

    def _send_drafts(self) -> None:
        state = self._state
        nodes = state.unsent()
        more = state.more_after(nodes)
        draft = draft_to_wire(nodes, state.sent - 1, state.vocabulary, more=more) if nodes else pb.Draft(more=more)
        state.mark_sent(nodes)
        state.flushed = not more
        self._unsent_since = self._now()
        if state.request.trace and nodes:
            self._trace.append(Drafted(tuple(_traced(node) for node in nodes)))
        message = pb.DecodeRequest(draft=draft)
        state.totals.draft_messages += 1
        state.totals.draft_bytes += message.ByteSize() + FRAME_BYTES
        self._line.send(message)

    # ---- what happens on the line -------------------------------------------------------------------------------

    def _handle(self, item: Item, at: float) -> Iterable[SessionEvent]:
        if isinstance(item, Connected):
            self._connected = True
            self._state.totals.connects += 1
            self._peer = item.peer
            self._control.note_open(self._now(), self._measured.of(item.peer))
            self._departures = Departures(self._control.known)
            self._line.uplink = self._control.known.uplink
            self._prefix = self._logs.best(item.peer, self._state.request.prompt)
            self._send_open()
            return []
        if isinstance(item, Broken):
            return self._broken(item)
        kind = item.WhichOneof("body")
        if kind == "opened":
            self._state.open(item.opened)
            self._state.totals.prompt_reused = 0 if self._prefix is None else self._prefix.length
            self._logs.remember(self._peer, item.opened.log_key, self._state.log)
            self._state.hang(self._alone.tokens, self._alone.guesses)
            return []
        if kind == "commit":
            return self._commit(item.commit, at)
        if kind == "need_prompt" and self._prefix is not None:
            self._logs.forget(self._peer, self._prefix.key)
            self._prefix = None
            self._send_open()
            return []
        raise MismatchError(f"the cloud sent a message of kind {kind!r}", hint="update outrider on this device")

    def _commit(self, message: pb.Commit, at: float) -> list[SessionEvent]:
        state = self._state
        tokens = state.commit(message)
        if tokens:
            self._progress_at = at
            self._departures.note_commit(at, 1 + message.more_steps)
            self._control.note_commit(at, len(tokens))
        events = self._alone.settle(tokens, finished=state.finish is not None)
        state.hang(self._alone.tokens, self._alone.guesses)
        return events

    def _broken(self, item: Broken) -> list[SessionEvent]:
        error, state = item.error, self._state
        if isinstance(error, SessionExistsError):
            # Our lease was lost with the first answer, or the old stream still lives: start under a fresh name.
            self._session_id, state.lease = new_session_id(), b""
        elif not error.retryable:
            raise error
        self._last_error = error
        self._connected = False
        state.reset()
        stuck_s = self._now() - self._progress_at
        if self._offline.mode is OfflineMode.ERROR and stuck_s > self._offline.after_s:
            raise error
        return [Reconnecting(str(error), item.wait_s)]

    def _send_open(self) -> None:
        opening = open_message(self._state, self._session_id, self._tokenizer_sha256, self._prefix)
        message = pb.DecodeRequest(open=opening)
        self._state.totals.prompt_bytes += message.ByteSize() + FRAME_BYTES
        self._departures.note_open(self._now())
        self._line.send(message)

    # ---- without the cloud --------------------------------------------------------------------------------------

    def _check_away(self) -> list[SessionEvent]:
        """Notice that the cloud has been silent for too long, or is back."""
        silent_s, policy = self._now() - self._line.heard_at, self._offline
        if silent_s < policy.after_s:
            if not self._away:
                return []
            self._away = False
            self._state.hang(self._alone.tokens, self._alone.guesses)
            return [Online()]
        if self._away:
            return self._settle_alone()
        reason = f"nothing was heard of the cloud at {self._line.where} for {silent_s:.1f} s"
        if self._last_error is not None:
            reason += f"; last: {self._last_error.message}"
        self._away = True
        if policy.mode is OfflineMode.ERROR or (policy.mode is OfflineMode.DRAFT and self._drafter is None):
            raise UnavailableError(reason, hint="is the cloud running, do address and TLS flags fit?")
        events: list[SessionEvent] = [Offline(reason, silent_s)]
        if policy.mode is OfflineMode.DRAFT:
            self._alone.begin(len(self._state.committed))
            if not self._alone:
                events += self._alone.extend(self._state.drafted(), len(self._state.committed))
        return events

    def _settle_alone(self) -> list[SessionEvent]:
        """A complete but unverified answer does not wait for ever."""
        if self._offline.mode is not OfflineMode.DRAFT or not self._alone.ended:
            self._ended_at = 0.0
            return []
        begins = not self._ended_at
        self._ended_at = self._ended_at or self._now()
        if self._now() >= self._ended_at + self._offline.settle_s:
            self._state.finish = "unverified"
            return []
        return [Settling(self._offline.settle_s)] if begins else []

    def _next_check_s(self) -> float | None:
        """Seconds until the clock alone may change something; None if it cannot."""
        if not self._away:
            silent_s = max(_TICK_S, self._line.heard_at + self._offline.after_s - self._now())
            waiting = self._connected and len(self._state.tree) > self._state.sent
            leave_in_s = self._leave_in_s() if waiting else None
            return silent_s if leave_in_s is None else max(_TICK_S, min(silent_s, leave_in_s))
        if self._offline.mode is OfflineMode.DRAFT and self._alone.ended:
            return max(_TICK_S, (self._ended_at or self._now()) + self._offline.settle_s - self._now())
        return None

    # ---- small things -------------------------------------------------------------------------------------------

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _unsent_s(self) -> float:
        return self._now() - self._unsent_since

    def _leave_in_s(self) -> float | None:
        """Seconds until unsent nodes should leave; None if neither the way up nor the cloud's steps tell."""
        if not self._state.policy.timed or self._state.request.pace is Pace.HOLD:
            return None
        now = self._now()
        leave_at = self._departures.leave_at(self._unsent_since, now)
        return None if leave_at is None else leave_at - now

    def _finished(self) -> Finished:
        state = self._state
        state.totals.unverified = len(self._alone.tokens)
        assert state.finish is not None, "only a finished session is finished"
        return Finished(state.finish, state.totals)


def _traced(node: Node) -> DraftedNode:
    margin, source = (None, "") if node.guess is None else (node.guess.margin, node.guess.source)
    parent = None if node.parent is None else node.parent.number
    return DraftedNode(node.number, parent, node.position, node.token, margin, source)
