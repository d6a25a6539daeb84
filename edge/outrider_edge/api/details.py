"""What `"outrider": {"details": true}` adds to a stream: where each token came from, and each node that was drafted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outrider_edge.session.events import Drafted, Offline, Online, Reconnecting, Retracted, Settling, Unverified

if TYPE_CHECKING:
    from outrider_edge.api.answer_text import Told
    from outrider_edge.api.token_text import Vocabulary
    from outrider_edge.session.events import SessionEvent


def token_detail(told: Told, vocabulary: Vocabulary) -> dict[str, Any]:
    """One token: its part of the text, its origin, and what the target thought of it where that was asked for."""
    token = told.token
    detail: dict[str, Any] = {"id": token.id, "text": told.text, "origin": token.origin.value}
    if token.logprob is not None:
        detail["logprob"] = token.logprob
        detail["top"] = [[vocabulary.text_of(id_), logprob] for id_, logprob in token.top]
    return detail


def event_detail(event: SessionEvent, vocabulary: Vocabulary, hidden: frozenset[int]) -> dict[str, Any]:
    """What happened, beside tokens: one key, named after it; `hidden` tokens are no part of the text."""
    if isinstance(event, Drafted):
        return {"drafted": _nodes(event, vocabulary)}
    if isinstance(event, Unverified):
        shown = [vocabulary.bytes_of(token) for token in event.tokens if token not in hidden]
        return {"unverified": [raw.decode(errors="replace") for raw in shown]}
    return _plain_detail(event)


def _plain_detail(event: SessionEvent) -> dict[str, Any]:
    match event:
        case Retracted():
            return {"retracted": event.count}
        case Reconnecting():
            return {"reconnecting": event.reason}
        case Offline():
            return {"offline": event.reason}
        case Settling():
            return {"settling": event.wait_s}
        case Online():
            return {"online": True}
        case _:
            return {}


def _nodes(event: Drafted, vocabulary: Vocabulary) -> list[list[Any]]:
    return [
        [
            node.number,
            node.parent,
            node.position,
            node.token,
            vocabulary.text_of(node.token),
            _finite(node.margin),
            node.source,
        ]
        for node in event.nodes
    ]


def _finite(margin: float | None) -> float | None:
    return None if margin is None or margin in {float("inf"), float("-inf")} else round(margin, 3)
