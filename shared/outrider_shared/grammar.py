"""What an answer must match: a JSON object, a JSON schema, a regular expression, or a grammar such as tool calls.

Rules:
    * The cloud masks the logits of every row, so a committed answer can always be completed to a text of the grammar.
    * The answer begins behind the prompt and ends with an end token of the model, which only a complete text allows.
    * An answer that is cut off (`length`, `context`, `stop`) is a prefix of such a text.

Here is only what both sides need: the kinds, bounds, and how tool calls are written. The cloud compiles.
"""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import GrammarError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_GRAMMAR_BYTES = 64 * 1024
MAX_TOOLS = 128
# JSON lets a model write white space for ever, and small models did until their tokens were spent. One space, or a new
# line with its indentation, is what people and libraries write.
JSON_SPACE = r"\x20|\x0A[\x20\x09]{0,24}"


class GrammarKind(enum.StrEnum):
    """What a grammar's text is written in."""

    JSON_OBJECT = "json_object"  # any JSON object; the text is empty
    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"  # as llguidance reads it


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must match.

    Attributes:
        kind: The language of `text`.
        text: At most 64 KiB of UTF-8.

    Raises:
        GrammarError: if the text is too long, missing, or no JSON where a schema is wanted.
    """

    kind: GrammarKind
    text: str = ""

    def __post_init__(self) -> None:
        size = len(self.text.encode(errors="surrogatepass"))
        if size > MAX_GRAMMAR_BYTES:
            raise GrammarError(f"the grammar has {size} bytes", hint=f"at most {MAX_GRAMMAR_BYTES} are taken")
        if (self.kind is GrammarKind.JSON_OBJECT) == bool(self.text):
            raise GrammarError(
                f"a grammar of kind {self.kind} comes {'with' if self.text else 'without'} a text",
                hint="json_object takes none, every other kind needs one",
            )
        if self.kind is GrammarKind.JSON_SCHEMA:
            _check_schema(self.text)


def _check_schema(text: str) -> None:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GrammarError(f"the schema is no JSON: {error}") from error
    if not isinstance(schema, (dict, bool)):
        raise GrammarError(f"the schema is a {type(schema).__name__}", hint="a JSON schema is an object")


def json_object() -> Grammar:
    """Any JSON object (`response_format` `json_object`)."""
    return Grammar(GrammarKind.JSON_OBJECT)


def json_schema(schema: Mapping[str, Any] | str) -> Grammar:
    """JSON that fits a schema (`response_format` `json_schema`).

    Raises:
        GrammarError: if it is too long, or a text that is no JSON.
    """
    return Grammar(GrammarKind.JSON_SCHEMA, schema if isinstance(schema, str) else json.dumps(schema))


def regex(pattern: str) -> Grammar:
    """Text that fits a regular expression as a whole."""
    return Grammar(GrammarKind.REGEX, pattern)


@dataclass(frozen=True, slots=True)
class ToolCallStyle:
    r"""How a chat template writes a tool call: `begin`, a JSON object of name and arguments, `end`.

    Attributes:
        begin: Text before the object, for example "<tool_call>\n"; may be empty where a call is all of the answer.
        end: Text behind it, for example "\n</tool_call>".
        specials: (text, token id) of the tokenizer's special tokens; where `begin` or `end` has one of these texts, the
            token is meant, and never its letters.
        name_key, arguments_key: Keys of the object.
    """

    begin: str = "<tool_call>\n"
    end: str = "\n</tool_call>"
    specials: tuple[tuple[str, int], ...] = ()
    name_key: str = "name"
    arguments_key: str = "arguments"


def tool_calls(
    tools: Sequence[tuple[str, Mapping[str, Any]]],
    style: ToolCallStyle | None = None,
    *,
    required: bool = False,
    parallel: bool = True,
) -> Grammar:
    """Answers whose tool calls name a given tool and fit its parameters.

    Args:
        tools: (name, JSON schema of the arguments) of each tool.
        style: How the model writes a call.
        required: The answer is calls and nothing else (`tool_choice` `required`, or one named tool); otherwise free
            text may come before each call, or without any.
        parallel: More than one call may be made.

    Raises:
        GrammarError: if there are no or too many tools, or free text cannot be told from a call.
    """
    style = style or ToolCallStyle()
    if not 1 <= len(tools) <= MAX_TOOLS:
        raise GrammarError(f"{len(tools)} tools are given", hint=f"from 1 to {MAX_TOOLS} are taken")
    begin, end = _lark(style.begin, style), _lark(style.end, style)
    repeat = "*" if parallel else "?"
    rules = ["%llguidance {}"]
    if required:
        more = f'("\\n"? {" ".join(begin)} call)*' if parallel else ""
        rules.append(f"start: {' '.join(begin)} call {more}")
    elif not begin:
        raise GrammarError("a call has no beginning that tells it from text", hint="give the style's `begin`")
    else:
        # A special token is no text, so it ends the text before it; letters need a rule that stops where they appear.
        head = f"TEXT {begin[0]}" if begin[0].startswith("<[") else "trigger"
        rules += [f"start: (text_call){repeat} TEXT", f"text_call: {head} {' '.join(begin[1:])} call"]
        rules += [r"TEXT: /(.|\n)*/", *([f"trigger[lazy]: TEXT {begin[0]}"] if head == "trigger" else [])]
    rules.append(f"call: ({' | '.join(f'tool_{i}' for i in range(len(tools)))}) {' '.join(end)}")
    rules += [f"tool_{i}: %json {json.dumps(_call(name, schema, style))}" for i, (name, schema) in enumerate(tools)]
    return Grammar(GrammarKind.LARK, "\n".join(rules))


def _lark(text: str, style: ToolCallStyle) -> list[str]:
    """A text as Lark terms: special tokens by their id, the rest quoted."""
    names = dict(style.specials)
    found = [name for name in names if name and name in text]
    if not found:
        return [json.dumps(text)] if text else []
    first = min(found, key=lambda name: (text.index(name), -len(name)))
    before, _, after = text.partition(first)
    return [*_lark(before, style), f"<[{names[first]}]>", *_lark(after, style)]


def _call(name: str, schema: Mapping[str, Any], style: ToolCallStyle) -> dict[str, Any]:
    arguments = dict(schema) or {"type": "object"}
    # References such as #/$defs/x are from the root, so the definitions move there.
    shared: dict[str, Any] = {key: arguments.pop(key) for key in ("$defs", "definitions") if key in arguments}
    return {
        **shared,
        "x-guidance": {"whitespace_pattern": JSON_SPACE},
        "type": "object",
        "properties": {style.name_key: {"const": name}, style.arguments_key: arguments},
        "required": [style.name_key, style.arguments_key],
        "additionalProperties": False,
    }
