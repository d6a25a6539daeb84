"""Plain decoding without a network: the engine with no drafts, the reference that every session must equal."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider_cloud.engine.events import Committed, Event, Failed, Request, Usage
from outrider_shared.ids import new_session_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_cloud.engine.engine import Engine
    from outrider_shared.logprobs import TokenLogprobs
    from outrider_shared.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    Attributes:
        tokens: Token ids beyond the prompt.
        finish: Why it ended.
        usage: What it cost.
        wall_s: Seconds from opening to the last token.
        logprobs: One per token if asked for.
    """

    tokens: list[int]
    finish: str
    usage: Usage
    wall_s: float
    logprobs: list[TokenLogprobs]


def generate(
    engine: Engine,
    prompt: Sequence[int],
    params: SamplingParams,
    max_tokens: int,
    *,
    on_tokens: Callable[[tuple[int, ...]], None] | None = None,
    **more: Any,
) -> Answer:
    """Decode one prompt to its end on an engine that this thread owns; `more` are further fields of `Request`.

    Raises:
        OutriderError: if the engine refuses the prompt or fails.
    """
    events: list[Event] = []
    request = Request(new_session_id(), tuple(prompt), max_tokens, params, own_drafts=False, **more)
    started = time.perf_counter()
    engine.open(request, events.append)
    tokens: list[int] = []
    logs: list[TokenLogprobs] = []
    while True:
        for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Committed):
                tokens += event.tokens
                logs += event.logprobs
                if on_tokens is not None:
                    on_tokens(event.tokens)
                if event.finish is not None and event.usage is not None:
                    engine.close(request.session_id)
                    wall_s = time.perf_counter() - started
                    return Answer(tokens, event.finish.value, event.usage, wall_s, logs)
        events.clear()
        engine.step()
