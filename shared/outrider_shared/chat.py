"""Chat templates, run in a Jinja sandbox: a template comes with a model and is as little trusted as one."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jinja2.sandbox import ImmutableSandboxedEnvironment


def read_chat_template(folder: Path) -> str:
    """The chat template of a Hugging Face folder, with its special tokens bound; empty for a model without chat.

    Raises:
        ConfigError: if tokenizer_config.json is no JSON object.
    """
    path = folder / "tokenizer_config.json"
    try:
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds no object")
    own = folder / "chat_template.jinja"
    template = own.read_text("utf-8") if own.is_file() else config.get("chat_template")
    if isinstance(template, list):  # older folders hold several named ones
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return bind_tokens(template, config) if isinstance(template, str) else ""


def bind_tokens(template: str, tokens: Mapping[str, Any]) -> str:
    """A template that knows the names of special tokens (`bos_token` and the like) by itself.

    transformers passes them beside the messages; here a template travels alone, in a pack.

    Args:
        template: Jinja text.
        tokens: A tokenizer_config.json: names ending in `_token` with their text, or an object with `content`.
    """
    lines = []
    for name, value in sorted(tokens.items()):
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and name.isidentifier() and isinstance(text, str) and name in template:
            lines.append(f"{{%- set {name} = {json.dumps(text)} -%}}")
    return "".join(lines) + template


def render_chat(
    template: str, messages: Sequence[dict[str, Any]], *, tools: Sequence[dict[str, Any]] | None = None, **more: Any
) -> str:
    """The prompt of a conversation, ending where the assistant's answer begins.

    Args:
        template: Jinja text of the model; it sees `messages` and `add_generation_prompt`, as in transformers.
        messages: Role and content of each message.
        tools: Descriptions of the functions that the model may call, for templates that tell them.
        more: Further names for the template, such as `enable_thinking`.

    Raises:
        ConfigError: if the model has no chat template.
        InputError: if the template refuses the messages.
    """
    if not template:
        raise ConfigError("the model has no chat template", hint="give a plain prompt instead")

    def refuse(message: str) -> None:
        raise InputError(f"the chat template refuses the messages: {message}")

    environment = _environment()
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "sort_keys": False}
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        compiled = environment.from_string(template)
        return compiled.render({"add_generation_prompt": True, **more, "messages": list(messages), "tools": tools})
    except InputError:
        raise
    except Exception as error:
        # A template is a program: it can add text to numbers, divide by zero and recurse, besides what Jinja refuses.
        raise InputError(f"the chat template cannot render these messages: {error}") from error


def check_template(template: str) -> None:
    """The text is Jinja, whatever it makes of messages.

    Raises:
        ConfigError: naming the line where it is not.
    """
    from jinja2 import TemplateSyntaxError  # noqa: PLC0415 - as in `_environment`

    try:
        _environment().parse(template)
    except TemplateSyntaxError as error:
        raise ConfigError(f"line {error.lineno} of the chat template: {error.message}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    # Imported here: only chats need it, and the wire and the engine do not.
    from jinja2.ext import loopcontrols  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    return ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=[loopcontrols]
    )


def _to_json(value: Any, *, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)
