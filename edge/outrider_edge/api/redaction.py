"""A hook that changes texts before they leave the device: a function of the operator's, `module:function`, str to str.

Rules:
    * Every text of a request goes through it: messages, and the arguments of earlier calls; completions' prompts.
    * What fails in it fails the request. Nothing goes out that the hook did not see.
    * Prompts given as token ids cannot be seen by it, and are refused.
    * Requests that never leave the device are not changed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError, InputError, InternalError

if TYPE_CHECKING:
    from collections.abc import Sequence

Redactor = Callable[[str], str]


def load_redactor(name: str) -> Redactor | None:
    """The function of that name; None for the empty one.

    Raises:
        ConfigError: if there is no such function.
    """
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"privacy.redact {name!r} cannot be loaded: {error}", hint="give module:function") from error
    if not callable(found):
        raise ConfigError(f"privacy.redact {name!r} is no function")

    def redact(text: str) -> str:
        try:
            changed = found(text)
        except Exception as error:  # noqa: BLE001 - whatever it is, nothing goes out
            # Without the error's own text: it may quote what must not get out.
            raise InternalError(f"the redaction hook failed with {type(error).__name__}; nothing was sent") from None
        if not isinstance(changed, str):
            raise InternalError(f"the redaction hook gave a {type(changed).__name__}; nothing was sent")
        return changed

    return redact


def redacted_messages(redact: Redactor, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages for a chat template with all of their texts changed."""
    return [
        {key: value if key in {"role", "id"} else _changed(redact, value) for key, value in one.items()}
        for one in messages
    ]


def redacted_prompt(redact: Redactor, prompt: Any) -> Any:
    """A prompt of the completion endpoint, changed.

    Raises:
        InputError: if it is token ids.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not all(isinstance(text, str) for text in texts):
        raise InputError(
            "a prompt of token ids cannot be redacted", hint="send text: this device has privacy.redact set"
        )
    return [redact(text) for text in texts]


def _changed(redact: Redactor, value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: inner if key in {"type", "id"} else _changed(redact, inner) for key, inner in value.items()}
    return [_changed(redact, inner) for inner in value] if isinstance(value, list) else value
