"""Chat templates, run in a Jinja sandbox: a template comes with a model and is as little trusted as one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


def render_chat(template: str, messages: Sequence[dict[str, Any]]) -> str:
    """The prompt of a conversation, ending where the assistant's answer begins.

    Args:
        template: Jinja text of the model; it sees `messages` and `add_generation_prompt`, as in transformers.
        messages: Role and content of each message.

    Raises:
        ConfigError: if the model has no chat template.
        InputError: if the template refuses the messages.
    """
    # Imported here: only chats need it, and the wire and the engine do not.
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    if not template:
        raise ConfigError("the model has no chat template", hint="give a plain prompt instead")

    def refuse(message: str) -> None:
        raise InputError(f"the chat template refuses the messages: {message}")

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(template).render(messages=list(messages), add_generation_prompt=True)
    except InputError:
        raise
    except Exception as error:
        # A template is a program: it can add text to numbers, divide by zero and recurse, besides what Jinja refuses.
        raise InputError(f"the chat template cannot render these messages: {error}") from error


def _to_json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
