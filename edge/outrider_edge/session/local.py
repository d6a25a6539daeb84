"""One answer without the cloud: the draft model alone, by the same rule and noise. Nothing leaves the device.

Its tokens are the draft's, not the target's, so all of them are unverified.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from outrider_edge.session.events import Finished, Origin, SessionEvent, Started, Token, Tokens, Totals
from outrider_shared.errors import ConfigError, ContextError, PromptError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from outrider_edge.session.events import GenerateRequest
    from outrider_shared.drafting.drafter import Drafter


async def generate_alone(
    request: GenerateRequest, drafter: Drafter | None, *, vocabulary: int, eos: frozenset[int]
) -> AsyncGenerator[SessionEvent]:
    """Events of one answer, from `Started` to `Finished`; tokens have the origin `unverified`.

    Args:
        request: What to answer; `pace` means nothing here.
        drafter: A draft model.
        vocabulary: Tokens that it knows.
        eos: The model's own end tokens.

    Raises:
        ConfigError: if there is no draft model.
        PromptError: if the prompt is empty, has unknown tokens, or fills the draft's context.
    """
    if drafter is None:
        raise ConfigError("an answer without the cloud needs a draft model", hint="serve with a pack")
    if not request.prompt or not all(0 <= token < vocabulary for token in request.prompt):
        raise PromptError("the prompt is empty or has tokens outside the vocabulary")
    totals, log = Totals(), list(request.prompt)
    ends = frozenset(request.stop) | (frozenset() if request.ignore_eos else eos)
    yield Started(totals)
    reason = "length"
    for _ in range(request.max_tokens):
        guess = await asyncio.to_thread(drafter.propose, log, request.params, 1)
        if guess is None or not guess.tokens:
            reason = "context"
            break
        token = guess.tokens[0]
        log.append(token)
        totals.draft_steps += 1
        yield Tokens((Token(token, Origin.UNVERIFIED),))
        if token in ends:
            reason = "stop" if token in request.stop else "eos"
            break
    if reason == "context" and len(log) == len(request.prompt):
        raise ContextError(f"the prompt has {len(log)} tokens", hint="the draft's context holds no more")
    yield Finished(reason, totals)
