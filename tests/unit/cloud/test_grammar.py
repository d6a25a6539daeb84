"""Grammars: what is refused and why, that a bomb is cut off, and masks along a tree."""

from __future__ import annotations

import numpy as np
import pytest

from outrider_cloud.grammar.compiler import GrammarCompiler
from outrider_shared.errors import GrammarError
from outrider_shared.grammar import Grammar, GrammarKind, ToolCallStyle, json_schema, regex, tool_calls
from support.grammars import LETTERS, matcher_of
from support.models import TINY_EOS, bundled_target

BOMB = {"allOf": [{"type": "string", "pattern": f".*a{i}.*"} for i in range(30)]}


@pytest.fixture(scope="module")
def compiler():
    made = GrammarCompiler(bundled_target(), timeout_s=2.0)
    yield made
    made.close()


def test_schema_bomb_is_cut_off_and_the_next_grammar_compiles(compiler):
    """A schema that does not compile in time costs its sender an error, and nobody else anything."""
    with pytest.raises(GrammarError, match="not compiled within 2 s"):
        compiler.compile(json_schema(BOMB))
    assert compiler.compile(regex("[a-z]+")) is not None


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (json_schema({"type": "strin"}), "strin"),
        (json_schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (regex("(?=a)b"), "look-around"),
        (Grammar(GrammarKind.LARK, "start: nowhere"), "nowhere"),
    ],
)
def test_grammar_that_cannot_be_followed_is_refused_by_its_problem(compiler, grammar, reason):
    with pytest.raises(GrammarError, match=reason):
        compiler.compile(grammar)


@pytest.mark.parametrize("text", ["{", "[1]", "", "x" * 70_000])
def test_text_that_is_no_schema_is_refused_on_the_device(text):
    with pytest.raises(GrammarError):
        json_schema(text)


def _allowed(mask) -> str:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return "".join("$" if i == TINY_EOS else LETTERS[i] for i in np.flatnonzero(bits))


def test_each_drafted_row_sees_its_own_path(tiny):
    """Siblings get their own masks, a refused token none, and the matcher stands where the answer does afterwards."""
    matcher = matcher_of(regex("a(b|cd)e"), tiny)
    a, b, c, e, z = (LETTERS.index(letter) for letter in "abcez")
    nodes = [(b, 0), (c, 0), (z, 0), (e, 1), (b, 3)]
    for _ in range(2):
        masks, errors = matcher.masks([a], nodes)
        assert not errors
        assert {offset: _allowed(mask) for offset, mask in masks.items()} == {0: "bc", 1: "e", 2: "d", 4: "$"}
    with pytest.raises(GrammarError, match="token 1"):
        matcher.follow([a, z])


def test_tool_calls_are_text_until_the_special_token_and_then_a_known_tool():
    """A tokenizer's special token is named by its id: nothing but the call may follow it."""
    model = bundled_target()
    begin, end = "<tool_call>", "</tool_call>"
    specials = tuple((name, model.tokenizer.token_to_id(name)) for name in (begin, end))
    tools = [("light", {"$defs": {"r": {"enum": ["hall"]}}, "properties": {"room": {"$ref": "#/$defs/r"}}})]
    grammar = tool_calls(tools, ToolCallStyle(begin, end, specials))
    right = 'Sure.<tool_call>{"name": "light", "arguments": {"room": "hall"}}</tool_call>'
    matcher_of(grammar, model).follow(model.tokenizer.encode(right, add_special_tokens=False).ids)
    for wrong in (right.replace("light", "heat"), right.replace("hall", "attic")):
        with pytest.raises(GrammarError):
            matcher_of(grammar, model).follow(model.tokenizer.encode(wrong, add_special_tokens=False).ids)
