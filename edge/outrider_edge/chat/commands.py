"""What a line that begins with a slash asks for. Nothing is done here; `talk` does it.

A message that has to begin with a slash is written with two.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from outrider_shared.errors import ConfigError

ABOUT = {
    "help": "these lines",
    "stats": "what drafting did so far, and how far the cloud is",
    "set": "NAME VALUE: change a parameter; alone, show them",
    "system": "TEXT: what the model is told first; alone, show it; 'none' takes it away",
    "retry": "ask the latest question again",
    "reset": "forget the conversation",
    "save": "FILE: keep the conversation",
    "load": "FILE: go on with a kept one",
    "quit": "leave (also Ctrl-D)",
}
_NEED_TEXT = {"save", "load"}
# Parameter -> whether it is one of our own switches (`"outrider": {...}`).
PARAMETERS = {
    "temperature": False, "top_p": False, "top_k": False, "min_p": False, "seed": False, "max_tokens": False,
    "stop": False, "pace": True, "drafter": True, "offline": True, "local_only": True, "smooth": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    """A command and what stands behind it."""

    name: str
    text: str = ""


def read(line: str) -> Command | str:
    """A command, or the words for the model.

    Raises:
        ConfigError: if there is no such command, or what it needs is missing.
    """
    if line.startswith("//"):
        return line[1:]
    if not line.startswith("/"):
        return line
    name, _, text = line[1:].partition(" ")
    found = {"exit": "quit", "bye": "quit", "?": "help"}.get(name, name)
    if found not in ABOUT:
        raise ConfigError(f"there is no command /{name}", hint="/help lists them; // begins a message with a slash")
    if found in _NEED_TEXT and not text.strip():
        raise ConfigError(f"/{found} needs the name of a file")
    return Command(found, text.strip())


def parameter(text: str) -> tuple[str, Any]:
    """Name and value of `/set NAME VALUE`; the value is JSON where it can be, else text.

    Raises:
        ConfigError: if there is no such parameter, or no value.
    """
    name, _, value = text.partition(" ")
    name = name.replace("-", "_")
    if name not in PARAMETERS:
        raise ConfigError(f"there is no parameter {name!r}", hint=", ".join(PARAMETERS))
    if not value.strip():
        raise ConfigError(f"/set {name} needs a value", hint="'default' leaves it to the settings")
    if value.strip() == "default":
        return name, None
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value.strip()


def body(messages: list[dict[str, Any]], parameters: dict[str, Any], *, details: bool) -> dict[str, Any]:
    """The request of one turn.

    Args:
        messages: The conversation.
        parameters: As `/set` has them; None is left to the settings.
        details: Ask for origins.
    """
    given = {name: value for name, value in parameters.items() if value is not None}
    ours = {name: value for name, value in given.items() if PARAMETERS[name]}
    asked = {name: value for name, value in given.items() if not PARAMETERS[name]}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": "outrider", "messages": messages, **stream, **asked, "outrider": {**ours, "details": details}}
