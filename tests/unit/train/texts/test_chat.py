"""Layout, loss mask, template and vocabulary."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from outrider_cloud.train.texts.chat import TEMPLATE, encode_chats, render
from outrider_cloud.train.texts.corpus import Chat
from outrider_cloud.train.texts.vocabulary import train_vocabulary

CALL = r'<tool_call>{"name": "HassLightSet", "arguments": {"name": "The \"big\" lamp", "brightness": 40}}</tool_call>'


def as_messages(chat: Chat, wrap: Any, arguments: Any) -> list[dict[str, Any]]:
    """The chat as an API client sends it."""
    messages = []
    for message in chat.messages:
        calls = [wrap(asdict(call) | {"arguments": arguments(call.arguments)}) for call in message.calls]
        messages.append({"role": message.role, "content": message.content} | ({"tool_calls": calls} if calls else {}))
    return messages


@pytest.mark.parametrize("arguments", [dict, json.dumps])
@pytest.mark.parametrize("wrap", [dict, lambda call: {"type": "function", "function": call}])
def test_the_template_gives_what_training_saw(chat: Chat, wrap: Any, arguments: Any):
    template = ImmutableSandboxedEnvironment().from_string(TEMPLATE)
    assert template.render(messages=as_messages(chat, wrap, arguments), add_generation_prompt=False) == render(chat)


def test_the_generation_prompt_opens_the_assistants_turn():
    template = ImmutableSandboxedEnvironment().from_string(TEMPLATE)
    rendered = template.render(messages=[{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert rendered == "<|user|>hi<|end|><|assistant|>"


def test_calls_are_written_as_json(chat: Chat):
    assert f"<|assistant|>Dimming it.{CALL}<|end|><|tool|>Success<|end|>" in render(chat)


def test_only_the_assistants_part_is_learned(chat: Chat, tokenizer: Tokenizer):
    (example,) = encode_chats(tokenizer, [chat], 512)
    learned = tokenizer.decode(example.ids[example.learn].tolist(), skip_special_tokens=False)
    assert learned == f"Dimming it.{CALL}<|end|>It's at 40% \u2013 done.<|end|>"
    assert tokenizer.encode(render(chat)).ids == example.ids.tolist()


def test_long_chats_are_cut(chat: Chat, tokenizer: Tokenizer):
    (example,) = encode_chats(tokenizer, [chat], 20)
    assert len(example.ids) == len(example.learn) == 20


@pytest.mark.parametrize("text", ["naïve café", "日本語 🦊\u200d", "\x00\x07\r\n\t  x", " lead", "\ud7ff\uffff"])
def test_any_text_reads_back_as_it_was(tokenizer: Tokenizer, text: str):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_call_marks_survive_skipping_of_control_tokens(chat: Chat, tokenizer: Tokenizer):
    text = tokenizer.decode(tokenizer.encode(render(chat)).ids, skip_special_tokens=True)
    assert CALL in text
    assert "<|" not in text


def test_too_little_text_for_a_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="only"):
        train_vocabulary(["abc"], 4096)
