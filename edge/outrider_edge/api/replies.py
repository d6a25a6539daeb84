"""An answer written down as OpenAI's API has it: whole objects, and chunks of a stream.

Beside OpenAI's fields: `timings` (what drafting did) with the last chunk of a choice and with whole answers, and
`outrider` (origins of tokens, drafted nodes, live totals) where details were asked for.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_edge.api.choices import Delta, End
from outrider_edge.api.details import event_detail, token_detail
from outrider_edge.api.tool_calls import CallDelta
from outrider_edge.session.events import Started

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.api.answer_text import Told
    from outrider_edge.api.asks import Ask
    from outrider_edge.api.token_text import Vocabulary
    from outrider_edge.session.events import Token, Totals


def timings(totals: Totals, tokens: int) -> dict[str, Any]:
    """What drafting did for one choice; bytes are messages with gRPC and HTTP/2 framing.

    The cloud's count: each of its steps commits drafted tokens and one of the target's own, so that of an answer over
    one stream `cloud_steps + accepted + cloud_drafted` are the committed tokens.
    """
    return {
        "drafted": totals.drafted,
        "accepted": totals.accepted,
        "cloud_drafted": totals.cloud_lookups + totals.cloud_drafts,
        "cloud_steps": totals.cloud_steps,
        "saved_cloud_steps": max(0, tokens - totals.cloud_steps) if totals.connects else 0,
        "tokens_per_step": round(tokens / totals.cloud_steps, 3) if totals.cloud_steps else None,
        "cloud_rows": totals.cloud_rows,
        "bytes_up": totals.uplink_bytes,
        "bytes_down": totals.downlink_bytes,
        "draft_ms": round(1000 * totals.draft_s, 3),
        "connects": totals.connects,
    }


@dataclass
class _Choice:
    """What was written of a choice so far."""

    parts: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[Told] = field(default_factory=list)
    end: End | None = None
    offset: int = 0

    @property
    def text(self) -> str:
        return "".join(self.parts)


class Reply:
    """One answer, in either form.

    Args:
        ask: What was asked.
        model: Who answers.
        vocabulary: Bytes of tokens.
        chat: Of the chat endpoint; else of the completion endpoint.
    """

    def __init__(self, ask: Ask, model: str, vocabulary: Vocabulary, *, chat: bool) -> None:
        self._ask, self._vocabulary, self._chat = ask, vocabulary, chat
        self._hidden = vocabulary.control - vocabulary.controls(ask.tools.marks if ask.tools else ())
        self._choices = [_Choice() for _ in ask.requests]
        self._base = {
            "id": ("chatcmpl-" if chat else "cmpl-") + secrets.token_hex(12),
            "created": int(time.time()),
            "model": model,
        }

    @property
    def text(self) -> str:
        """All text so far, for a log that is allowed to have it."""
        return "\n".join(choice.text for choice in self._choices)

    # ---- streams --------------------------------------------------------------------------------------------------

    def opening(self) -> list[dict[str, Any]]:
        """The first chunks: the role, or the prompt where it is to be echoed."""
        if self._chat:
            return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(len(self._choices))]
        return [self._chunk(i, {"text": text}) for i, text in enumerate(self._ask.echo)]

    def chunks(self, step: Delta | End) -> list[dict[str, Any]]:
        """The chunks of one step."""
        if isinstance(step, End):
            return [self._ending(step)]
        out = [self._part(step.choice, part) for part in step.parts]
        wanted = self._ask.details or (step.tokens and self._ask.logprobs is not None)
        if not out and wanted:
            out = [self._part(step.choice, "")]
        if step.tokens and out:
            self._tell_tokens(out[-1]["choices"][0], step.choice, step.tokens)
        if self._ask.details:
            self._detail(out[-1], step)
        return out

    def closing(self) -> list[dict[str, Any]]:
        """What follows the last choice."""
        return [{**self._head(stream=True), "choices": [], "usage": self._usage()}] if self._ask.include_usage else []

    def _detail(self, chunk: dict[str, Any], step: Delta) -> None:
        detail: dict[str, Any] = {}
        if step.tokens:
            detail["tokens"] = [token_detail(told, self._vocabulary) for told in step.tokens]
        if step.event is not None:
            detail |= event_detail(step.event, self._vocabulary, self._hidden)
        if isinstance(step.event, Started):
            detail["prompt_tokens"] = len(self._ask.requests[step.choice].prompt)
        if step.totals is not None:
            detail["totals"] = timings(step.totals, step.count)
        chunk["outrider"] = detail

    def _part(self, index: int, part: str | CallDelta) -> dict[str, Any]:
        if isinstance(part, CallDelta):
            call: dict[str, Any] = {"index": part.index, "function": {"arguments": part.arguments}}
            if part.id:
                call |= {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
            return self._chunk(index, {"tool_calls": [call]})
        self._choices[index].parts.append(part)
        return self._chunk(index, {"content": part} if self._chat and part else {} if self._chat else {"text": part})

    def _ending(self, end: End) -> dict[str, Any]:
        self._choices[end.choice].end = end
        chunk = self._chunk(end.choice, {} if self._chat else {"text": ""}, end.reason)
        chunk["timings"] = timings(end.totals, end.tokens)
        if end.unverified:
            chunk["unverified"] = True
        return chunk

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        body = {"delta": delta} if self._chat else {"text": delta.get("text", "")}
        chunk = {
            **self._head(stream=True),
            "choices": [{"index": index, **body, "logprobs": None, "finish_reason": reason}],
        }
        return {**chunk, "usage": None} if self._ask.include_usage else chunk

    # ---- whole answers --------------------------------------------------------------------------------------------

    def take(self, step: Delta | End) -> None:
        """Remember one step for `body`."""
        choice = self._choices[step.choice]
        if isinstance(step, End):
            choice.end = step
            return
        choice.tokens += step.tokens
        for part in step.parts:
            if isinstance(part, str):
                choice.parts.append(part)
            elif part.id:
                function = {"name": part.name, "arguments": part.arguments}
                choice.calls.append({"id": part.id, "type": "function", "function": function})
            else:
                choice.calls[part.index]["function"]["arguments"] += part.arguments

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        ends = [choice.end for choice in self._choices if choice.end is not None]
        spent = [timings(end.totals, end.tokens) for end in ends]
        body = {
            **self._head(stream=False),
            "choices": [self._whole(i, choice) for i, choice in enumerate(self._choices)],
            "usage": self._usage(),
            "timings": spent[0] if len(spent) == 1 else {"choices": spent},
        }
        return {**body, "unverified": True} if any(end.unverified for end in ends) else body

    def _whole(self, index: int, choice: _Choice) -> dict[str, Any]:
        assert choice.end is not None, "a whole answer has an end"
        out: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": choice.end.reason}
        if self._chat:
            content = choice.text if choice.text or not choice.calls else None
            out["message"] = {"role": "assistant", "content": content, "refusal": None}
            if choice.calls:
                out["message"]["tool_calls"] = choice.calls
        else:
            out["text"] = (self._ask.echo[index] if self._ask.echo else "") + choice.text
        self._tell_tokens(out, index, choice.tokens)
        if self._ask.details:
            out["outrider"] = {"tokens": [token_detail(told, self._vocabulary) for told in choice.tokens]}
        return out

    # ---- both -----------------------------------------------------------------------------------------------------

    def _head(self, *, stream: bool) -> dict[str, Any]:
        kind = ("chat.completion.chunk" if stream else "chat.completion") if self._chat else "text_completion"
        return {**self._base, "object": kind, "system_fingerprint": None}

    def _usage(self) -> dict[str, Any]:
        ends = [choice.end for choice in self._choices if choice.end is not None]
        written, read = sum(end.tokens for end in ends), self._ask.prompt_tokens
        # Choices share their prompt; what the cloud had of it before is what the first of them found.
        cached = min(read, min((end.totals.cached_tokens for end in ends), default=0))
        return {
            "prompt_tokens": read,
            "completion_tokens": written,
            "total_tokens": read + written,
            "prompt_tokens_details": {"cached_tokens": cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": sum(end.totals.accepted for end in ends),
                "rejected_prediction_tokens": sum(max(0, end.totals.drafted - end.totals.accepted) for end in ends),
            },
        }

    def _tell_tokens(self, choice: dict[str, Any], index: int, tokens: Sequence[Told]) -> None:
        if self._ask.logprobs is None:
            return
        state = self._choices[index]
        if self._chat:
            choice["logprobs"] = {"content": [self._chat_logprob(told) for told in tokens], "refusal": None}
            return
        text_of = self._vocabulary.text_of
        offsets = []
        for told in tokens:
            offsets.append(state.offset)
            state.offset += len(told.text)
        choice["logprobs"] = {
            "tokens": [text_of(told.token.id) for told in tokens],
            "token_logprobs": [told.token.logprob for told in tokens],
            "top_logprobs": [self._likeliest(told.token) for told in tokens],
            "text_offset": offsets,
        }

    def _likeliest(self, token: Token) -> dict[str, float]:
        """The likeliest by their texts, and the chosen one if it is not among them."""
        chosen = () if token.logprob is None else ((token.id, token.logprob),)
        return {self._vocabulary.text_of(id_): logprob for id_, logprob in (*token.top, *chosen)}

    def _chat_logprob(self, told: Told) -> dict[str, Any]:
        token = told.token
        return {**self._logprob(token.id, token.logprob), "top_logprobs": [self._logprob(*one) for one in token.top]}

    def _logprob(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = self._vocabulary.bytes_of(token)
        return {"token": self._vocabulary.text_of(token), "logprob": logprob, "bytes": list(raw)}
