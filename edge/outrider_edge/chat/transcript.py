"""What was said so far, as the API has it; kept in a file when asked to."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, Any]


@dataclass
class Transcript:
    """A conversation.

    Attributes:
        system: What the model is told first; empty for nothing.
        said: Messages of the user and the assistant, in turns.
    """

    system: str = ""
    said: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """All of it, as a request has it."""
        return [*([{"role": "system", "content": self.system}] if self.system else []), *self.said]

    def ask(self, words: str) -> None:
        """The user says something."""
        self.said.append({"role": "user", "content": words})

    def answer(self, text: str) -> None:
        """The model answered."""
        self.said.append({"role": "assistant", "content": text})

    def take_back(self) -> str:
        """Forget the latest question, and its answer if there is one; the question, empty if there is none."""
        while self.said:
            last = self.said.pop()
            if last["role"] == "user":
                return str(last["content"])
        return ""

    def reset(self) -> None:
        """Forget what was said; what the model is told first stays."""
        self.said.clear()

    def save(self, file: Path) -> None:
        """Write it as one line of JSON, which `outrider edge compare --requests` reads, too.

        Raises:
            ConfigError: if the file cannot be written.
        """
        try:
            file.write_text(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from error

    def load(self, file: Path) -> None:
        """Take over a file of `save`.

        Raises:
            ConfigError: if it cannot be read, or holds something else.
        """
        try:
            messages = json.loads(file.read_text("utf-8"))["messages"]
            told = [{"role": str(one["role"]), "content": str(one["content"])} for one in messages]
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} holds no conversation", hint='it has to be {"messages": [...]}') from error
        self.system = told.pop(0)["content"] if told and told[0]["role"] == "system" else ""
        self.said = told
