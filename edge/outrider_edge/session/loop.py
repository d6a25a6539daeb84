"""One stream's life: open, then draft, send and receive until the session is finished or the stream breaks.

Two tasks share the state, both in one event loop: the conductor drafts and sends, the receiver only collects. A commit
is handled before the next draft step starts; a draft step never waits for the network.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING

from outrider_edge.session.events import Drafted, DraftedNode, Pace, SessionEvent, Tokens
from outrider_edge.session.plan import Action, plan
from outrider_shared.errors import MismatchError, OutriderError, UnavailableError
from outrider_shared.packing import pack_tokens
from outrider_shared.wire import FRAME_BYTES, PROTOCOL_VERSION, draft_to_wire, error_from_wire, sampling_to_wire
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from concurrent.futures import Executor

    from outrider_edge.draft.drafter import Drafter
    from outrider_edge.link.link import Link
    from outrider_edge.session.state import SessionState
    from outrider_shared.ids import SessionId
    from outrider_shared.tree import Node

# A pass shorter than this runs in the event loop: handing it to a thread would cost as much as it takes.
INLINE_S = 0.002
# How long an orderly end may take.
_PART_S = 0.5
_PACES = {Pace.AHEAD: pb.PACE_AHEAD, Pace.HOLD: pb.PACE_HOLD, Pace.AUTO: pb.PACE_AUTO}


class StreamLoop:
    """Drives one stream of a session.

    Args:
        state: The session, reset for a new stream.
        session_id: Its id on this stream.
        tokenizer_sha256: Fingerprint of the device's tokenizer, hex.
        link: The stream.
        drafter: None decodes plainly.
        executor: Where slow draft passes run.
    """

    def __init__(
        self,
        state: SessionState,
        session_id: SessionId,
        tokenizer_sha256: str,
        link: Link,
        drafter: Drafter | None,
        executor: Executor | None = None,
    ) -> None:
        self._state = state
        self._session_id = session_id
        self._tokenizer_sha256 = tokenizer_sha256
        self._link = link
        self._drafter = drafter
        self._executor = executor
        self._inbox: deque[pb.DecodeResponse | OutriderError | None] = deque()
        self._arrived = asyncio.Event()
        self._trace: deque[Drafted] = deque()
        self._outbox: asyncio.Queue[pb.DecodeRequest | None] = asyncio.Queue()
        self._broken = False
        self._unsent_since = 0.0
        # Unknown at first, and the first pass reads the whole prompt.
        self._pass_s = float("inf")

    async def run(self) -> AsyncGenerator[SessionEvent]:
        """Yield events until the session is finished.

        Raises:
            OutriderError: what the cloud or the link said; a retryable one leaves the state ready for `reset`.
        """
        tasks = [asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._transmit())]
        self._send(pb.DecodeRequest(open=self._open()))
        try:
            while True:
                while self._inbox:
                    event = self._handle(self._inbox.popleft())
                    if event is not None:
                        yield event
                while self._trace:
                    yield self._trace.popleft()
                action = plan(self._state, drafting=self._drafter is not None, unsent_s=self._unsent_s())
                if action is Action.DONE:
                    return
                await self._act(action)
        except OutriderError:
            self._broken = True
            raise
        finally:
            receiver, _ = tasks
            if not self._broken:
                await self._part(receiver)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _part(self, receiver: asyncio.Future[None]) -> None:
        """End the stream in order: the cloud would keep the session of a cut one for its return.

        A caller that lost interest before the end has the session cancelled.
        """
        if self._state.finish is None:
            self._send(pb.DecodeRequest(cancel=pb.Cancel()))
        self._outbox.put_nowait(None)
        await asyncio.wait([receiver], timeout=_PART_S)

    async def _act(self, action: Action) -> None:
        if action is Action.SEND:
            self._send_drafts()
        elif action is Action.DRAFT:
            await self._draft()
        else:
            self._arrived.clear()
            if not self._inbox:
                await self._arrived.wait()

    async def _draft(self) -> None:
        state, drafter = self._state, self._drafter
        assert drafter is not None
        if len(state.tree) == state.sent:
            self._unsent_since = time.monotonic()
        tokens, params, width = state.path(), state.request.params, state.policy.width
        started = time.perf_counter()
        if self._executor is None or self._pass_s < INLINE_S:
            guess = drafter.propose(tokens, params, width)
        else:
            loop = asyncio.get_running_loop()
            guess = await loop.run_in_executor(self._executor, drafter.propose, tokens, params, width)
        self._pass_s = time.perf_counter() - started
        state.totals.draft_s += self._pass_s
        state.totals.draft_steps += 1
        state.grow(guess)
        await asyncio.sleep(0)

    def _send_drafts(self) -> None:
        state = self._state
        nodes = state.unsent()
        more = not state.burst_done or len(state.tree) - state.sent > len(nodes)
        draft = draft_to_wire(nodes, state.sent - 1, state.vocabulary, more=more) if nodes else pb.Draft(more=more)
        state.mark_sent(nodes)
        state.flushed = not more
        self._unsent_since = time.monotonic()
        if state.request.trace and nodes:
            self._trace.append(Drafted(tuple(_traced(node) for node in nodes)))
        message = pb.DecodeRequest(draft=draft)
        state.totals.draft_messages += 1
        state.totals.draft_bytes += message.ByteSize() + FRAME_BYTES
        self._send(message)

    def _unsent_s(self) -> float:
        return time.monotonic() - self._unsent_since

    def _handle(self, message: pb.DecodeResponse | OutriderError | None) -> SessionEvent | None:
        if message is None:
            raise UnavailableError("the cloud ended the stream before the answer was complete")
        if isinstance(message, OutriderError):
            raise message
        self._state.totals.downlink_bytes += message.ByteSize() + FRAME_BYTES
        kind = message.WhichOneof("body")
        if kind == "error":
            raise error_from_wire(message.error)
        if kind == "opened":
            self._state.open(message.opened)
        elif kind == "commit":
            tokens = self._state.commit(message.commit)
            return Tokens(tuple(tokens)) if tokens else None
        else:
            raise MismatchError(f"the cloud sent a message of kind {kind!r}", hint="update outrider on this device")
        return None

    def _send(self, message: pb.DecodeRequest) -> None:
        self._state.totals.uplink_bytes += message.ByteSize() + FRAME_BYTES
        self._outbox.put_nowait(message)

    async def _transmit(self) -> None:
        try:
            while (message := await self._outbox.get()) is not None:
                await self._link.send(message)
            await self._link.half_close()
        except OutriderError:
            # The receiver learns the reason of a broken stream, and what the cloud said before it broke.
            return

    async def _receive(self) -> None:
        message: pb.DecodeResponse | OutriderError | None
        while True:
            try:
                message = await self._link.receive()
            except OutriderError as error:
                message = error
            self._inbox.append(message)
            self._arrived.set()
            if message is None or isinstance(message, OutriderError):
                return

    def _open(self) -> pb.Open:
        state, request = self._state, self._state.request
        committed = state.committed
        return pb.Open(
            session_id=self._session_id,
            protocol_version=PROTOCOL_VERSION,
            tokenizer_sha256=bytes.fromhex(self._tokenizer_sha256),
            vocabulary_size=state.vocabulary,
            sampling=sampling_to_wire(request.params),
            max_tokens=request.max_tokens,
            stop_token_ids=request.stop,
            ignore_eos=request.ignore_eos,
            pace=_PACES[request.pace],
            prompt=pack_tokens(request.prompt, state.vocabulary),
            prompt_length=len(request.prompt),
            committed=pack_tokens(committed, state.vocabulary),
            committed_length=len(committed),
            lease=state.lease,
            logprobs=request.logprobs,
        )


def _traced(node: Node) -> DraftedNode:
    margin, source = (None, "") if node.guess is None else (node.guess.margin, node.guess.source)
    parent = None if node.parent is None else node.parent.number
    return DraftedNode(node.number, parent, node.position, node.token, margin, source)
