"""One answer, whatever happens to the network: connect, run the stream, and on a break resume exactly.

What a resumed session needs is here: prompt, committed tokens, parameters and seed. By the invariants its text is what
it would have been, on the same replica or on another.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_edge.link.backoff import Backoff
from outrider_edge.session.events import Finished, Reconnecting, SessionEvent, Started
from outrider_edge.session.loop import StreamLoop
from outrider_edge.session.policy import DraftPolicy
from outrider_edge.session.state import SessionState
from outrider_shared.calibration import Calibrations
from outrider_shared.errors import OutriderError, PromptError, SessionExistsError
from outrider_shared.ids import new_session_id

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable
    from concurrent.futures import Executor

    from outrider_edge.draft.drafter import Drafter
    from outrider_edge.link.link import Connector
    from outrider_edge.session.events import GenerateRequest


@dataclass(frozen=True)
class Client:
    """What all sessions of a device share.

    Attributes:
        connector: The way to the cloud.
        vocabulary: Tokens of the draft's (and the target's) vocabulary.
        tokenizer_sha256: Fingerprint of the tokenizer, hex.
        new_drafter: Makes one session's drafter; None decodes plainly.
        policy: How far to draft.
        calibration: Margin to survival, shared by the device's sessions.
        backoff: How long to wait between tries.
        executor: Where slow draft passes run; None runs all in the event loop.
    """

    connector: Connector
    vocabulary: int
    tokenizer_sha256: str
    new_drafter: Callable[[], Drafter] | None = None
    policy: DraftPolicy = field(default_factory=DraftPolicy)
    calibration: Calibrations = field(default_factory=Calibrations)
    backoff: Backoff = field(default_factory=Backoff)
    executor: Executor | None = None

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[SessionEvent]:
        """Events of one answer, from `Started` to `Finished`.

        Raises:
            PromptError: if a token of the prompt is outside the vocabulary, or there is none.
            OutriderError: what the cloud refused, or `UnavailableError` after `backoff.give_up_s` without progress.
        """
        _check(request, self.vocabulary)
        state = SessionState(request, self.policy, self.vocabulary, self.calibration)
        drafter = None if self.new_drafter is None else self.new_drafter()
        yield Started(state.totals)
        session_id, failures, since = new_session_id(), 0, time.monotonic()
        while state.finish is None:
            known = len(state.log)
            try:
                link = await self.connector.connect()
                state.totals.connects += 1
                try:
                    stream = StreamLoop(state, session_id, self.tokenizer_sha256, link, drafter, self.executor)
                    async with contextlib.aclosing(stream.run()) as events:
                        async for event in events:
                            yield event
                finally:
                    await link.close()
            except SessionExistsError:
                # Our lease was lost with the first answer, or the old stream still lives: start under a fresh name.
                session_id, state.lease, reason = new_session_id(), b"", "the session id was in use"
            except OutriderError as error:
                if not error.retryable:
                    raise
                reason = str(error)
                if len(state.log) == known and time.monotonic() - since > self.backoff.give_up_s:
                    raise
            if state.finish is None:
                failures, since = (failures + 1, since) if len(state.log) == known else (1, time.monotonic())
                wait_s = self.backoff.wait_s(failures)
                yield Reconnecting(reason, wait_s)
                await asyncio.sleep(wait_s)
                state.reset()
        yield Finished(state.finish, state.totals)


def _check(request: GenerateRequest, vocabulary: int) -> None:
    if not request.prompt:
        raise PromptError("the prompt is empty", hint="give at least one token")
    outside = [token for token in request.prompt if not 0 <= token < vocabulary]
    if outside:
        raise PromptError(f"token id {outside[0]} is outside the vocabulary of {vocabulary}")
