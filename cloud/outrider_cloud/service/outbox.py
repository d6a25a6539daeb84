"""Between the engine's events and the messages of one stream.

A reader that is slower than the engine gets fewer, larger commits: what waits is merged, never dropped. Of several
pings that wait, the last is answered.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from outrider_cloud.engine.events import Committed, Event, Failed, Finish, Source, Usage
from outrider_shared.logprobs import pack_logprobs
from outrider_shared.packing import pack_tokens
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

_FINISH = {
    None: pb.FINISH_REASON_UNSPECIFIED,
    Finish.EOS: pb.FINISH_REASON_EOS,
    Finish.STOP: pb.FINISH_REASON_STOP,
    Finish.LENGTH: pb.FINISH_REASON_LENGTH,
    Finish.CONTEXT: pb.FINISH_REASON_CONTEXT,
    Finish.CANCELLED: pb.FINISH_REASON_CANCELLED,
}


class Outbox:
    """Events of one session that wait to be sent. `put` may be called from the loop's thread only."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._filled = asyncio.Event()
        self._pong: pb.Pong | None = None

    def put(self, event: Event) -> None:
        """Add an event."""
        self._events.append(event)
        self._filled.set()

    def answer(self, ping: pb.Ping) -> None:
        """Answer a ping before all events: it says that this side lives, not how busy it is."""
        self._pong = pb.Pong(number=ping.number)
        self._filled.set()

    async def take(self) -> Event | pb.Pong:
        """The next event; waiting commits come as one. An error overtakes nothing."""
        while not self._events and self._pong is None:
            self._filled.clear()
            await self._filled.wait()
        if self._pong is not None:
            pong, self._pong = self._pong, None
            return pong
        head = self._events[0]
        if not isinstance(head, Committed):
            return self._events.pop(0)
        run: list[Committed] = []
        while self._events and isinstance(event := self._events[0], Committed):
            run.append(event)
            self._events.pop(0)
        return merge(run)


def merge(commits: Sequence[Committed]) -> Committed:
    """One commit in place of several consecutive ones; the tokens are all spelled out if there are several."""
    if len(commits) == 1:
        return commits[0]
    last = commits[-1]
    return Committed(
        last.session_id,
        tuple(token for c in commits for token in c.tokens),
        last.length,
        steps=sum(c.steps for c in commits),
        origins=_merged_origins(commits),
        hint=next((c.hint for c in reversed(commits) if c.hint is not None), None),
        finish=last.finish,
        logprobs=tuple(p for c in commits for p in c.logprobs),
        usage=last.usage,
    )


def _merged_origins(commits: Sequence[Committed]) -> tuple[Source, ...]:
    """One per token: with the tokens spelled out, the edge cannot tell any more which of them it had drafted."""
    merged: list[Source] = []
    for c in commits:
        merged += c.origins or [Source.EDGE] * c.known + [Source.TARGET] * (len(c.tokens) - c.known)
    return tuple(merged)


def commit_to_wire(event: Committed, vocabulary: int) -> pb.Commit:
    """The message of a commit."""
    explicit, origins = event.tokens[event.known :], event.origins[event.known :]
    logprobs, top_tokens, top_logprobs = (
        pack_logprobs(event.logprobs, vocabulary) if event.logprobs else (b"", b"", b"")
    )
    return pb.Commit(
        accepted=event.accepted + 1,
        tokens=pack_tokens(explicit, vocabulary),
        count=len(explicit),
        length=event.length,
        finish=_FINISH[event.finish],
        token_logprobs=logprobs,
        top_tokens=top_tokens,
        top_logprobs=top_logprobs,
        more_steps=max(0, event.steps - 1),
        usage=None if event.usage is None else usage_to_wire(event.usage),
        origins=pack_tokens(origins, len(Source)) if any(origins) else b"",
        max_nodes=0 if event.hint is None else event.hint.max_nodes,
        load=0 if event.hint is None else event.hint.load,
    )


def usage_to_wire(usage: Usage) -> pb.Usage:
    """The message of a usage."""
    return pb.Usage(
        steps=usage.steps,
        rows=usage.rows,
        prefill_rows=usage.prefill_rows,
        cached_tokens=usage.cached_tokens,
        accepted=usage.accepted,
        preemptions=usage.preemptions,
        accepted_lookup=usage.accepted_lookup,
        accepted_cloud=usage.accepted_cloud,
        edge_rows=usage.edge_rows,
        lookup_rows=usage.lookup_rows,
        cloud_rows=usage.cloud_rows,
        busy_us=usage.busy_us,
    )


def is_last(event: Event) -> bool:
    """Whether nothing follows the event on its stream."""
    return isinstance(event, Failed) or (isinstance(event, Committed) and event.finish is not None)
