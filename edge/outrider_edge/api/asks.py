"""What a request means: prompts as tokens, one `GenerateRequest` per choice, and how the answer is to be written.

Rules:
    * Whatever would change the answer and cannot be honoured is refused, with the field's name; nothing is dropped
      silently.
    * Choice i of a request has a seed of its own, derived from the request's; choice 0 has the request's.
    * Without a seed, one is drawn, so that two equal requests at a temperature differ.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from outrider_edge.api.conversation import template_messages
from outrider_edge.api.errors import about
from outrider_edge.api.redaction import redacted_messages, redacted_prompt
from outrider_edge.api.schemas import MAX_CHOICES, ChatRequest, NamedTool, Outrider
from outrider_edge.api.tool_calls import call_style, tool_format
from outrider_edge.session.events import GenerateRequest, Pace
from outrider_shared.chat import render_chat
from outrider_shared.errors import GrammarError, InputError, ParameterError, PromptError, UnsupportedError
from outrider_shared.grammar import json_object, json_schema, tool_calls
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.api.config import Defaults
    from outrider_edge.api.outfit import Outfit
    from outrider_edge.api.redaction import Redactor
    from outrider_edge.api.schemas import Common, CompletionRequest, ResponseFormat
    from outrider_edge.api.tool_calls import ToolFormat
    from outrider_edge.session.offline import OfflineMode
    from outrider_shared.grammar import Grammar

LOCAL_MODEL = "outrider-local"
MAX_PROMPTS = 16
_FORM = "response_format has JSON and JSON schemas"
# What other APIs have, would change the answer, and is not done here -> what to use in its place.
_UNSUPPORTED = {
    "functions": "use tools", "function_call": "use tool_choice", "audio": "this model writes text only",
    "web_search_options": "offer a search as one of the tools", "grammar": _FORM, "json_schema": _FORM,
    "guided_json": _FORM, "guided_regex": _FORM, "guided_choice": _FORM, "guided_grammar": _FORM,
    "structured_outputs": _FORM,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, understood.

    Attributes:
        requests: One per choice; those of one prompt stand together.
        choices: Per prompt.
        stops: Stop strings.
        logprobs: Tell log-probabilities, with this many alternatives per position; None tells none.
        tools: How calls are written, where tools are in play.
        parallel_calls: More than one call may be made.
        drafter: Which drafter; None is the configured one.
        local_only: Nothing may leave the device.
        offline: What to do without the cloud; None is as configured.
        smooth: Spread bursts.
        details: Tell origins and drafts.
        include_usage: End a stream with what it used.
        echo: The prompt's text, where it is to stand before each choice.
        prompt_field: The request's field with the prompt.
        grammar_field: The one that the grammar came from.
    """

    requests: tuple[GenerateRequest, ...]
    choices: int = 1
    stops: tuple[str, ...] = ()
    logprobs: int | None = None
    tools: ToolFormat | None = None
    parallel_calls: bool = True
    drafter: str | None = None
    local_only: bool = False
    offline: OfflineMode | None = None
    smooth: bool = False
    details: bool = False
    include_usage: bool = False
    echo: tuple[str, ...] = ()
    prompt_field: str = "prompt"
    grammar_field: str = "response_format"

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; choices of one prompt share it."""
        return sum(len(request.prompt) for request in self.requests[:: self.choices])

    def field_of(self, error: InputError) -> str:
        """The field that an error is about which came while the ask was answered."""
        if isinstance(error, PromptError):
            return error.param or self.prompt_field
        return error.param or (self.grammar_field if isinstance(error, GrammarError) else "")


def chat_ask(
    body: ChatRequest,
    outfit: Outfit,
    defaults: Defaults,
    *,
    local_only: bool = False,
    redact: Redactor | None = None,
) -> Ask:
    """A chat request, understood.

    Raises:
        InputError: what cannot be done; names the field.
    """
    _check_extra(body)
    template = outfit.chat_template
    offered = list(body.tools or ()) if body.tool_choice != "none" else []
    kind = tool_format(template) if offered else None
    if offered and kind is None:
        message = "tools: this model's chat template has no tool calls"
        raise UnsupportedError(message, hint="leave `tools` out", param="tools")
    tools = [tool.model_dump(exclude_none=True) for tool in offered] or None
    if not offered and (body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)):
        message = "tool_choice asks for a call, but there are no tools"
        raise ParameterError(message, hint="give tools", param="tool_choice")
    if body.top_logprobs is not None and not body.logprobs:
        raise ParameterError("top_logprobs needs logprobs", hint="set logprobs to true", param="top_logprobs")
    local_only = local_only or _local(body, defaults)
    with about("messages"):
        messages = template_messages(body.messages, template)
        if redact is not None and not local_only:
            messages = redacted_messages(redact, messages)
        text = render_chat(template, messages, tools=tools, **_template_names(body.chat_template_kwargs or {}))
        prompt = outfit.encode(text, special=False)
    most = body.max_completion_tokens or body.max_tokens
    with about("tools"):
        grammar = _called(body, kind, outfit) if kind else None
    if grammar is not None and body.response_format is not None and body.response_format.type != "text":
        message = "response_format and forced tool calls contradict each other"
        raise ParameterError(message, hint="leave one of them out", param="response_format")
    ask = _ask(body, [prompt], most, outfit, defaults)
    return replace(
        ask,
        requests=tuple(replace(request, grammar=grammar) for request in ask.requests) if grammar else ask.requests,
        tools=kind,
        prompt_field="messages",
        grammar_field="tools" if grammar is not None else ask.grammar_field,
        parallel_calls=body.parallel_tool_calls is not False,
        local_only=local_only,
    )


def completion_ask(
    body: CompletionRequest,
    outfit: Outfit,
    defaults: Defaults,
    *,
    local_only: bool = False,
    redact: Redactor | None = None,
) -> Ask:
    """A completion request, understood.

    Raises:
        InputError: what cannot be done; names the field.
    """
    _check_extra(body)
    if body.suffix:
        message = "suffix is not supported: this model only continues a text"
        raise UnsupportedError(message, hint="leave it out", param="suffix")
    if body.best_of is not None and body.best_of != (body.n or 1):
        message = f"best_of {body.best_of} is not supported"
        raise UnsupportedError(message, hint="leave it out, or give n", param="best_of")
    local_only = local_only or _local(body, defaults)
    with about("prompt"):
        prompts = _prompts(body, outfit, None if local_only else redact)
    ask = _ask(body, prompts, body.max_tokens or 16, outfit, defaults)
    echo = tuple(outfit.decode(request.prompt) for request in ask.requests) if body.echo else ()
    if body.echo and body.logprobs is not None:
        message = "echo with logprobs is not supported: the prompt's log-probabilities are not computed"
        raise UnsupportedError(message, hint="leave one of them out", param="echo")
    return replace(ask, echo=echo, local_only=local_only)


def _check_extra(body: Common) -> None:
    """Refuse fields that no schema here has, but whose sender counts on them."""
    extra = body.model_extra or {}
    for name, instead in _UNSUPPORTED.items():
        if extra.get(name):
            raise UnsupportedError(f"{name} is not supported", hint=instead, param=name)
    wanted = extra.get("modalities") or ["text"]
    if wanted != ["text"]:
        message = f"modalities {wanted!r} are not supported"
        raise UnsupportedError(message, hint=_UNSUPPORTED["audio"], param="modalities")


def _template_names(given: dict[str, Any]) -> dict[str, Any]:
    """What the chat template is told beside the conversation."""
    if taken := sorted(given.keys() & {"template", "messages", "tools"}):
        message = f"chat_template_kwargs has {taken[0]!r}, which is not the caller's to set there"
        raise ParameterError(message, hint="leave it out", param="chat_template_kwargs")
    return given


def reporting(ask: Ask, body: ChatRequest | CompletionRequest, *, agreed: bool) -> Ask:
    """The ask, with leave to keep its refused drafts if the device's owner agreed; a request may only say no."""
    if not agreed or (body.outrider is not None and body.outrider.report_refused is False):
        return ask
    return replace(ask, requests=tuple(replace(request, report_refused=True) for request in ask.requests))


def _local(body: ChatRequest | CompletionRequest, defaults: Defaults) -> bool:
    """Whether nothing of this request may leave the device."""
    return defaults.local_only or body.model == LOCAL_MODEL or (body.outrider is not None and body.outrider.local_only)


def _prompts(body: CompletionRequest, outfit: Outfit, redact: Redactor | None) -> list[tuple[int, ...]]:
    given: Any = body.prompt
    if redact is not None:
        given = redacted_prompt(redact, given)
    if isinstance(given, str):
        return [outfit.encode(given)]
    if not given:
        raise PromptError("prompt is an empty list", hint="give a text or at least one token")
    if isinstance(given[0], int):
        return [tuple(given)]
    prompts = [outfit.encode(one) if isinstance(one, str) else tuple(one) for one in given]
    if len(prompts) > MAX_PROMPTS:
        raise PromptError(f"{len(prompts)} prompts in one request", hint=f"at most {MAX_PROMPTS}")
    return prompts


def _called(body: ChatRequest, kind: ToolFormat, outfit: Outfit) -> Grammar | None:
    """What forces calls where one is required, or keeps those of strict tools to their parameters."""
    tools, choice = body.tools or [], body.tool_choice
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
        if not tools:
            message = f"tool_choice names {choice.function.name!r}, which is not among the tools"
            raise ParameterError(message, param="tool_choice")
    required = choice == "required" or isinstance(choice, NamedTool)
    if not required and not any(tool.function.strict for tool in tools):
        return None
    described = [(tool.function.name, tool.function.parameters or {"type": "object"}) for tool in tools]
    parallel = body.parallel_tool_calls is not False and not isinstance(choice, NamedTool)
    style = call_style(kind, outfit.chat_template, outfit.vocabulary.added(kind.marks))
    return tool_calls(described, style, required=required, parallel=parallel)


def _form(form: ResponseFormat | None) -> Grammar | None:
    """What the answer must match."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return json_object()
    schema = form.json_schema.schema_ if form.json_schema else None
    if schema is None:
        message = "response_format json_schema comes without a schema"
        raise ParameterError(message, hint="give json_schema.schema", param="response_format.json_schema")
    return json_schema(schema)


def _ask(
    body: ChatRequest | CompletionRequest,
    prompts: Sequence[tuple[int, ...]],
    most: int | None,
    outfit: Outfit,
    defaults: Defaults,
) -> Ask:
    ours, options = body.outrider or Outrider.model_validate({}), body.stream_options
    logprobs = _logprobs(body)
    params = _params(body, defaults, outfit.vocabulary_size)
    with about("response_format"):
        grammar = _form(body.response_format)
    requests: list[GenerateRequest] = []
    for prompt in prompts:
        base = GenerateRequest(
            prompt=prompt,
            max_tokens=_most(most, prompt, outfit, defaults),
            params=params,
            ignore_eos=body.ignore_eos,
            pace=ours.pace or Pace(defaults.pace),
            logprobs=logprobs is not None,
            top_logprobs=logprobs or 0,
            min_tokens=body.min_tokens or 0,
            grammar=grammar,
            trace=ours.details,
        )
        requests += base.choices(body.n or 1)
    if len(requests) > MAX_CHOICES:
        raise ParameterError(f"{len(requests)} answers in one request", hint=f"at most {MAX_CHOICES}", param="n")
    return Ask(
        requests=tuple(requests),
        choices=body.n or 1,
        stops=_stops(body.stop),
        logprobs=logprobs,
        drafter=ours.drafter,
        offline=ours.offline,
        smooth=defaults.smooth if ours.smooth is None else ours.smooth,
        details=ours.details,
        include_usage=options is not None and options.include_usage,
    )


def _logprobs(body: ChatRequest | CompletionRequest) -> int | None:
    if isinstance(body, ChatRequest):
        return (body.top_logprobs or 0) if body.logprobs else None
    return body.logprobs


def _params(body: Common, defaults: Defaults, vocabulary: int) -> SamplingParams:
    return SamplingParams(
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        top_k=max(0, defaults.top_k if body.top_k is None else body.top_k),
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        min_p=defaults.min_p if body.min_p is None else body.min_p,
        seed=secrets.randbits(48) if body.seed is None else body.seed % (1 << 64),
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        logit_bias=_biases(body.logit_bias or {}, vocabulary),
    )


def _biases(given: dict[str, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    for token in given:
        if not (token.isascii() and token.isdecimal()):
            message = f"logit_bias has the key {token[:40]!r}, which is no token id"
            raise ParameterError(message, hint="give ids, not texts", param="logit_bias")
        if len(token) > len(str(vocabulary)) or int(token) >= vocabulary:
            message = f"logit_bias names token {token[:40]}"
            raise ParameterError(message, hint=f"the vocabulary ends at {vocabulary - 1}", param="logit_bias")
    return tuple((int(token), bias) for token, bias in given.items())


def _most(asked: int | None, prompt: Sequence[int], outfit: Outfit, defaults: Defaults) -> int:
    """Tokens to generate: what was asked for, else what the context leaves, up to the configured default."""
    if asked is not None:
        return asked
    return max(1, min(defaults.max_tokens, outfit.context_length - len(prompt)))


def _stops(stop: str | list[str] | None) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return tuple(text for text in dict.fromkeys(stops) if text)
