"""Calls of tools, read out of a text while it is written, in the way that the model's chat template writes them.

Ways (`FORMATS`), told apart by marks in the template:
    tagged   `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`: the bundled pair, Qwen, Hermes
    listed   `[TOOL_CALLS][{"name": ..., "arguments": {...}}, ...]`: Mistral
    bare     the whole answer is `{"name": ..., "parameters": {...}}`, `<|python_tag|>` before it or not: Llama 3

Rules:
    * Arguments are passed on letter for letter as the model wrote them, as they come, without the space around them.
    * What looks like a call and is none (no JSON, no name) comes out as the text that it is.
"""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_shared.grammar import ToolCallStyle

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMED = r'\s*,?\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*'
_ARGUMENTS = r'(?:,\s*"(?:arguments|parameters)"\s*:\s*|(?=\}))'
_NAME = re.compile(_NAMED + _ARGUMENTS)
_OTHER_KEY = re.compile(_NAMED + r',\s*"(?!arguments"|parameters")[^"]*"')


@dataclass(frozen=True, slots=True)
class CallDelta:
    """A part of a call.

    Attributes:
        index: Which call of the answer.
        id: With the first part: its id.
        name: With the first part: the tool.
        arguments: JSON text to append.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model writes calls.

    Attributes:
        name: Of the way.
        opening: What begins a call; empty where a brace at the start of the answer does.
        closing: What ends it; empty where its last bracket does.
    """

    name: str
    opening: str
    closing: str = ""

    @property
    def marks(self) -> tuple[str, ...]:
        """Spellings of its control tokens."""
        return tuple(mark for mark in (self.opening, self.closing, "<|python_tag|>") if mark)


FORMATS = (
    ToolFormat("tagged", "<tool_call>", "</tool_call>"),
    ToolFormat("listed", "[TOOL_CALLS]"),
    ToolFormat("bare", ""),
)
_TEMPLATE_MARKS = ("<tool_call>", "[TOOL_CALLS]", "<|python_tag|>")


def tool_format(template: str) -> ToolFormat | None:
    """How calls are written by the model of that chat template; None for a model that makes none."""
    for kind, mark in zip(FORMATS, _TEMPLATE_MARKS, strict=True):
        if mark in template:
            return kind
    return FORMATS[2] if '"parameters"' in template and "tools" in template else None


def call_style(kind: ToolFormat, template: str, specials: tuple[tuple[str, int], ...] = ()) -> ToolCallStyle:
    """How a grammar has to write a call for the model of that template, some marks being tokens of their own."""
    if kind.name == "tagged":
        line = "\n" if re.search(r"<tool_call>(\\n|\n)", template) else ""
        return ToolCallStyle(kind.opening + line, line + kind.closing, specials)
    if kind.name == "listed":
        return ToolCallStyle(kind.opening + "[", "]", specials)
    return ToolCallStyle("", "", arguments_key="parameters")


def new_call_id() -> str:
    """A random id for a call."""
    return f"call_{secrets.token_hex(12)}"


class ToolCallReader:
    """Splits an answer into text and calls.

    Args:
        kind: How calls are written.
        new_id: Makes ids of calls.

    Attributes:
        calls: Calls that were begun.
        complete: Calls that were read to their end.
    """

    def __init__(self, kind: ToolFormat, new_id: Callable[[], str] = new_call_id) -> None:
        self._kind = kind
        self._new_id = new_id
        self._buffer = ""
        self._raw = ""  # what was taken of an open call before its name was known
        self._inside = self._named = False
        self._body = _JsonEnd()
        self._fresh = True  # nothing but white space so far
        self._list = False
        self.calls = self.complete = 0

    def push(self, text: str) -> list[str | CallDelta]:
        """Take text; parts of the answer in order: strings are content."""
        self._buffer += text
        out: list[str | CallDelta] = []
        while self._step(out):
            pass
        return out

    def finish(self) -> list[str | CallDelta]:
        """The answer is over; what was held back comes out as text."""
        rest, self._buffer, self._raw = self._raw + self._buffer, "", ""
        between = self.complete and not self._kind.opening and not rest.strip("; \n")
        return [] if self._named or not rest or between else [rest]

    def _step(self, out: list[str | CallDelta]) -> bool:
        if not self._inside:
            return self._seek(out)
        return self._arguments(out) if self._named else self._head(out)

    def _seek(self, out: list[str | CallDelta]) -> bool:
        """Text up to where the next call may begin."""
        mark = self._kind.opening
        if not mark:
            return self._seek_bare(out)
        place = self._buffer.find(mark)
        if place < 0:
            keep = next((n for n in range(len(mark) - 1, 0, -1) if self._buffer.endswith(mark[:n])), 0)
            _say(out, self._buffer[: len(self._buffer) - keep])
            self._buffer = self._buffer[len(self._buffer) - keep :]
            return False
        _say(out, self._buffer[:place])
        self._buffer, self._raw = self._buffer[place + len(mark) :], mark
        self._inside, self._list = True, self._kind.name == "listed"
        return True

    def _seek_bare(self, out: list[str | CallDelta]) -> bool:
        text = self._buffer.lstrip().removeprefix("<|python_tag|>").lstrip()
        if self._fresh and (not text or "<|python_tag|>".startswith(text)):
            return False
        if self._fresh and text.startswith("{"):
            self._buffer, self._raw, self._inside, self._fresh = text, "", True, False
            return True
        if self._calls_follow(text):
            self._buffer, self._raw, self._inside = text.lstrip("; "), "", True
            return True
        if self.complete and not text.strip("; \n"):
            return False  # between two calls, perhaps
        self._fresh = False
        _say(out, self._buffer)
        self._buffer = ""
        return False

    def _calls_follow(self, text: str) -> bool:
        return self.complete > 0 and self.complete == self.calls and text.lstrip("; ").startswith("{")

    def _head(self, out: list[str | CallDelta]) -> bool:
        """The name of the call, up to its arguments."""
        text = self._buffer
        if self._list and text.lstrip().startswith("[") and "[" not in self._raw[1:]:
            place = text.index("[") + 1
            self._raw, self._buffer = self._raw + text[:place], text[place:]
            return True
        if self._list and self.calls and text.lstrip().startswith("]"):
            rest = text.lstrip()[1:]
            self._leave()
            self._buffer = rest
            return True
        match = _NAME.match(text)
        if match is None:
            if not self._hopeless(text):
                return False
            _say(out, self._raw + text)
            self._leave()
            return False
        name = json.loads(match[1], strict=False)
        out.append(CallDelta(self.calls, self._new_id(), name))
        self.calls += 1
        self._named, self._body = True, _JsonEnd()
        self._buffer = text[match.end() :]
        return True

    def _hopeless(self, text: str) -> bool:
        """Whether this can become no call any more."""
        if (self._kind.closing and self._kind.closing in text) or _OTHER_KEY.match(text):
            return True
        probe = re.sub(r"\s", "", text).lstrip(",")
        head = '{"name":"'
        return not (probe.startswith(head) or head.startswith(probe))

    def _arguments(self, out: list[str | CallDelta]) -> bool:
        """Arguments as they come, up to the bracket that ends them; then the end of the call."""
        index = self.calls - 1
        if not self._body.done:
            if self._body.empty and self._buffer.lstrip().startswith("}"):
                out.append(CallDelta(index, arguments="{}"))
                self._body.done = True
            else:
                if self._body.empty:
                    self._buffer = self._buffer.lstrip()
                taken = self._body.take(self._buffer)
                if taken:
                    out.append(CallDelta(index, arguments=self._buffer[:taken]))
                self._buffer = self._buffer[taken:]
        if not self._body.done:
            return False
        closing = self._kind.closing
        rest = self._buffer.lstrip()
        end = rest.find(closing) if closing else rest.find("}")
        if end < 0:
            return False
        self._buffer = rest[end + (len(closing) or 1) :]
        self.complete += 1
        return self._after_call()

    def _after_call(self) -> bool:
        self._raw, self._named = "", False
        if not self._list:
            self._inside = False
            return True
        rest = self._buffer.lstrip()
        if rest.startswith("]"):
            self._buffer, self._inside = rest[1:], False
        return bool(rest)

    def _leave(self) -> None:
        self._buffer = self._raw = ""
        self._inside = self._named = self._list = False


class _JsonEnd:
    """Finds where one JSON value ends."""

    def __init__(self) -> None:
        self.done, self.empty = False, True
        self._depth = 0
        self._string = self._escaped = False

    def take(self, text: str) -> int:
        """How many characters of `text` belong to the value."""
        for place, character in enumerate(text):
            if self._string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._string = False
            elif character == '"':
                self._string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            self.empty = self.empty and character.isspace()
            if self._depth == 0 and not self._string and not self.empty:
                self.done = True
                return place + 1
        return len(text)


def _say(out: list[str | CallDelta], text: str) -> None:
    if text:
        out.append(text)
