"""Messages of the API as a chat template wants them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.api.schemas import Message


def template_messages(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Role and plain text of each message, with calls as objects.

    Raises:
        UnsupportedError: if a message has parts that are no text.
    """
    return [_message(index, message, template) for index, message in enumerate(messages)]


def _message(index: int, message: Message, template: str) -> dict[str, Any]:
    role = message.role
    if role == "developer" and "developer" not in template:
        role = "system"
    plain: dict[str, Any] = {"role": role, "content": _text(index, message)}
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        plain["tool_call_id"] = message.tool_call_id
    if message.name:
        plain["name"] = message.name
    return plain


def _text(index: int, message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    parts = []
    for place, part in enumerate(message.content or ()):
        if part.type not in {"text", "refusal"}:
            raise UnsupportedError(
                f"a message has a part of type {part.type!r}",
                hint="this model reads text only",
                param=f"messages[{index}].content[{place}].type",
            )
        parts.append(part.text or part.refusal or "")
    return "".join(parts)


def _arguments(text: str) -> Any:
    """Templates write arguments themselves, from an object; what is no object stays text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text
