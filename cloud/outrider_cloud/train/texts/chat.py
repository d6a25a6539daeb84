"""Rendering of chats into tokens, and which tokens are learned.

The same layout three times: `pieces` in Python for training, `TEMPLATE` in Jinja for serving (a test holds them
together), and in words: `<|role|>content<|end|>` per message without white space between; an assistant's calls follow
its content as
`<tool_call>{"name": "HassTurnOn", "arguments": {"name": "Kitchen Lights"}}</tool_call>`.
"""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from outrider_cloud.train.texts.corpus import Chat, Message

END, PAD = "<|end|>", "<|pad|>"
CONTROL_TOKENS = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CALL_TOKENS = ("<tool_call>", "</tool_call>")

# No `tojson`: jinja2's own escapes quotes for HTML and sorts keys, transformers' does not.
TEMPLATE = """\
{%- macro text(value) -%}
"{{ value | replace('\\\\', '\\\\\\\\') | replace('"', '\\\\"') | replace('\\n', '\\\\n') }}"
{%- endmacro -%}
{%- macro json(value) -%}
{%- if value is mapping -%}
{ {%- for key, item in value.items() -%}
{{ text(key) }}: {{ json(item) }}{% if not loop.last %}, {% endif %}
{%- endfor -%} }
{%- elif value is string -%}{{ text(value) }}
{%- elif value is boolean -%}{{ 'true' if value else 'false' }}
{%- else -%}{{ value }}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content or '' }}
{%- for entry in message.tool_calls or [] -%}
{%- set call = entry.function or entry -%}
<tool_call>{"name": {{ text(call.name) }}, "arguments": \
{{ call.arguments if call.arguments is string else json(call.arguments) }}}</tool_call>
{%- endfor -%}
<|end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}
"""


@dataclass(frozen=True)
class Example:
    """A chat as tokens; `learn` is true where the token is the assistant's (its end included, its role token not)."""

    ids: NDArray[np.unsignedinteger[Any]]  # [length]
    learn: NDArray[np.bool_]  # [length]


def pieces(chat: Chat) -> list[tuple[str, bool]]:
    """The rendered chat as (text, is it the assistant's own) pieces."""
    out: list[tuple[str, bool]] = []
    for message in chat.messages:
        out.append((f"<|{message.role}|>", False))
        out.append((body(message) + END, message.role == "assistant"))
    return out


def body(message: Message) -> str:
    """What a message says, its calls included."""
    calls = (json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in message.calls)
    return message.content + "".join(f"<tool_call>{call}</tool_call>" for call in calls)


def render(chat: Chat) -> str:
    """The whole chat as the one string that the template gives."""
    return "".join(text for text, _ in pieces(chat))


def encode_chats(tokenizer: Tokenizer, chats: list[Chat], longest: int) -> list[Example]:
    """Examples of at most `longest` tokens; longer chats are cut at the end."""
    parts = [pieces(chat) for chat in chats]
    flat = tokenizer.encode_batch_fast([text for part in parts for text, _ in part])
    examples, cursor = [], 0
    for part in parts:
        ids = [encoding.ids for encoding in flat[cursor : cursor + len(part)]]
        learn = [np.full(len(i), own) for i, (_, own) in zip(ids, part, strict=True)]
        cursor += len(part)
        examples.append(Example(np.concatenate(ids).astype(np.uint16)[:longest], np.concatenate(learn)[:longest]))
    return examples


def end_of(tokenizer: Tokenizer) -> int:
    """The id of the end token. Raises ValueError for a tokenizer of another layout."""
    end = tokenizer.token_to_id(END)
    if end is None:
        raise ValueError(f"the tokenizer has no {END}")
    return int(end)
