"""Answers of a given form, through the official client: forced calls, JSON schemas; drafted as any other."""

from __future__ import annotations

import json
from typing import Literal

import openai
import pydantic
import pytest

from support.daemon import CHAT, TOOLS

STRANGE = [{"role": "user", "content": "hello"}]  # nothing that the model would call a tool for by itself
LIGHT = {
    "type": "object",
    "properties": {"light": {"enum": ["on", "off"]}, "level": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["light", "level"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "state", "schema": LIGHT, "strict": True}}


class State(pydantic.BaseModel):
    """A caller's own type."""

    light: Literal["on", "off"]
    level: Literal[1, 2, 3]


PLAIN = {"outrider": {"drafter": "none", "pace": "ahead"}}


@pytest.fixture
def ask(device):
    with openai.OpenAI(base_url=f"{device.address}/v1", api_key="any", max_retries=0, timeout=120) as client:
        yield lambda **more: client.chat.completions.create(
            **{"model": "outrider", "messages": CHAT, "temperature": 0, "max_tokens": 80, **more}
        )


def _streamed_calls(chunks) -> tuple[list[list[str]], str, str | None]:
    """[name, arguments] of each call, the text, and how it ended, of a stream put together."""
    calls, text, reason = [], "", None
    for chunk in chunks:
        (choice,) = chunk.choices
        text, reason = text + (choice.delta.content or ""), choice.finish_reason or reason
        for part in choice.delta.tool_calls or ():
            if part.id:
                assert part.index == len(calls)
                calls.append([part.function.name, ""])
            calls[part.index][1] += part.function.arguments or ""
    return calls, text, reason


@pytest.mark.parametrize("messages", [CHAT, STRANGE], ids=["apt", "inapt"])
def test_required_call_is_made_whole_or_streamed(ask, messages):
    """`tool_choice` required: a call of a given tool that fits its parameters and no text, drafted or plain."""
    options = {"tools": TOOLS, "tool_choice": "required", "messages": messages, "parallel_tool_calls": False}
    choice = ask(**options).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    assert call.function.name in {"HassTurnOff", "HassTurnOn"}
    assert isinstance(json.loads(call.function.arguments)["name"], str)
    calls, text, reason = _streamed_calls(ask(**options, stream=True))
    assert (calls, text, reason) == ([[call.function.name, call.function.arguments]], "", "tool_calls")
    plain = ask(**options, extra_body=PLAIN).choices[0].message.tool_calls[0].function
    assert plain == call.function


def test_named_tool_is_the_one_that_is_called(ask):
    """Whatever was asked for, the named tool; a name that is not offered is the caller's fault."""
    for name in ("HassTurnOn", "HassTurnOff"):
        named = {"type": "function", "function": {"name": name}}
        (call,) = ask(tools=TOOLS, tool_choice=named).choices[0].message.tool_calls
        assert call.function.name == name
    with pytest.raises(openai.BadRequestError, match="not among the tools"):
        ask(tools=TOOLS, tool_choice={"type": "function", "function": {"name": "Nothing"}})


def test_no_more_than_one_call_where_one_is_allowed(ask):
    """`parallel_tool_calls` false ends the answer behind its first call; otherwise both devices are seen to."""
    both = [CHAT[0], {"role": "user", "content": "turn off the kitchen light and turn off the office fan"}]
    options = {"tools": TOOLS, "tool_choice": "required", "messages": both}
    many = ask(**options).choices[0].message.tool_calls
    one = ask(**options, parallel_tool_calls=False).choices[0]
    assert [call.function for call in one.message.tool_calls] == [many[0].function]
    assert one.finish_reason == "tool_calls"


def test_strict_tools_keep_text_and_calls_apart(ask):
    """`strict` without a forced call: text before it stays, and what is called fits its parameters."""
    strict = [{**tool, "function": {**tool["function"], "strict": True}} for tool in TOOLS]
    free, held = (ask(tools=tools).choices[0].message for tools in (TOOLS, strict))
    assert held.content == free.content
    assert [call.function for call in held.tool_calls] == [call.function for call in free.tool_calls]


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_answer_fits_its_schema_at_any_temperature(ask, temperature):
    """An object that fits, the same drafted or plain, streamed or not; a schema that cannot be followed is refused."""
    options = {"response_format": FORM, "temperature": temperature, "seed": 3}
    whole = ask(**options).choices[0]
    answer = json.loads(whole.message.content)
    assert set(answer) == {"light", "level"}
    assert answer["light"] in {"on", "off"}
    assert 0 <= answer["level"] <= 9
    assert whole.finish_reason == "stop"
    streamed = "".join(chunk.choices[0].delta.content or "" for chunk in ask(**options, stream=True))
    assert streamed == ask(**options, extra_body=PLAIN).choices[0].message.content == whole.message.content
    bad = {"name": "bad", "schema": {"type": "array", "uniqueItems": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(response_format={"type": "json_schema", "json_schema": bad})


def test_any_json_object_and_the_clients_own_parsing(ask, device):
    """`json_object` gives an object or its beginning; the client's `parse` fills a model of the caller's."""
    assert ask(response_format={"type": "json_object"}).choices[0].message.content.lstrip().startswith("{")
    with openai.OpenAI(base_url=f"{device.address}/v1", api_key="any", max_retries=0, timeout=120) as client:
        done = client.chat.completions.parse(
            model="x", messages=CHAT, response_format=State, temperature=0, max_tokens=80
        )
    assert isinstance(done.choices[0].message.parsed, State)
