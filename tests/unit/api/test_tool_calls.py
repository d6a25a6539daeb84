"""Calls of tools read out of streams, in each way that models write them."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from outrider_edge.api.token_text import Vocabulary
from outrider_edge.api.tool_calls import FORMATS, CallDelta, ToolCallReader, tool_format
from outrider_shared.packs import bundled_pack

TAGGED, LISTED, BARE = FORMATS
ONE = '{"name": "Set", "arguments": {"to": "a }b\\" [", "at": [1, {"x": null}]}}'
TWO = '{"name": "Get", "arguments": {}}'


def _read(kind, text, cuts=()):
    """Content, and (name, arguments) of each call."""
    reader, content, calls = ToolCallReader(kind, lambda: "id"), "", []
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [part for a, b in itertools.pairwise(places) for part in reader.push(text[a:b])]
    for part in [*parts, *reader.finish()]:
        if isinstance(part, str):
            content += part
        elif part.id:
            assert part.index == len(calls)
            calls.append([part.name, part.arguments])
        else:
            calls[part.index][1] += part.arguments
    return content, [(name, json.loads(arguments)) for name, arguments in calls], reader


EXPECTED = [("Set", {"to": 'a }b" [', "at": [1, {"x": None}]}), ("Get", {})]
TEXTS = [
    (TAGGED, f"Doing it.<tool_call>{ONE}</tool_call>\n<tool_call>\n{TWO}\n</tool_call>", "Doing it.\n", EXPECTED),
    (LISTED, f"Sure.[TOOL_CALLS] [{ONE}, {TWO}]", "Sure.", EXPECTED),
    (BARE, ONE.replace("arguments", "parameters"), "", EXPECTED[:1]),
    (BARE, "<|python_tag|>" + ONE.replace("arguments", "parameters") + "; " + TWO, "", EXPECTED),
    (BARE, "The light is {on}.", "The light is {on}.", []),
    (TAGGED, "no call < here", "no call < here", []),
    (TAGGED, "a<tool_call>not json</tool_call>b", "a<tool_call>not json</tool_call>b", []),
    (TAGGED, '<tool_call>{"name": "x", "id": 1}</tool_call>', '<tool_call>{"name": "x", "id": 1}</tool_call>', []),
    (TAGGED, 'x<tool_call>{"name": "Se', 'x<tool_call>{"name": "Se', []),
    (TAGGED, '<tool_call>{"name": "Get"}</tool_call>', "", EXPECTED[1:]),
]


@pytest.mark.parametrize(("kind", "text", "content", "calls"), TEXTS)
def test_calls_and_text_are_told_apart(kind, text, content, calls):
    assert _read(kind, text)[:2] == (content, calls)


@given(case=st.sampled_from(TEXTS), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_cutting_the_stream_anywhere_changes_nothing(case, cuts):
    """Whatever arrives together: the same text, the same calls, letter for letter."""
    kind, text, content, calls = case
    assert _read(kind, text, cuts)[:2] == (content, calls)
    assert _read(kind, text, range(len(text)))[:2] == (content, calls)


def test_arguments_stream_before_the_call_is_complete():
    """A long argument is passed on as it comes."""
    reader = ToolCallReader(TAGGED, lambda: "id")
    parts = reader.push('<tool_call>{"name": "Say", "arguments": {"text": "once upon')
    assert parts == [CallDelta(0, "id", "Say"), CallDelta(0, arguments='{"text": "once upon')]
    assert reader.complete == 0


def test_format_is_known_by_the_template():
    assert tool_format("...<tool_call>...") is TAGGED
    assert tool_format("{{ '[TOOL_CALLS]' }}") is LISTED
    assert tool_format("<|python_tag|>") is BARE
    assert tool_format("plain") is None


def test_marks_are_named_by_their_tokens_whether_special_or_not():
    """A grammar library takes every added token for special; the bundled tokenizer does not call these so."""
    vocabulary = Vocabulary(Tokenizer.from_file(str(bundled_pack() / "tokenizer.json")))
    assert vocabulary.added(TAGGED.marks) == (("<tool_call>", 6), ("</tool_call>", 7))
    assert vocabulary.controls(TAGGED.marks) == frozenset()
