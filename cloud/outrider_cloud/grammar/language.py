"""From a request's grammar to llguidance's, under limits. Imports nothing of the engine: the trial process uses it."""

from __future__ import annotations

from typing import Any

from outrider_shared.errors import GrammarError
from outrider_shared.grammar import JSON_SPACE, Grammar, GrammarKind

# Bounds of one mask: about 7 ms of lexing and 1 ms of parsing, and of memory: about 100 MB of lexer states.
_LIMITS: dict[str, Any] = {
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


def new_tokenizer(tokenizer_json: str, vocabulary: int, eos: list[int]) -> Any:
    """Llguidance's view of a tokenizer.

    Raises:
        GrammarError: if there is no end token, or the tokenizer is of a kind that llguidance does not read.
    """
    from llguidance import LLTokenizer  # noqa: PLC0415 - a large library that most sessions do without

    if not eos:
        raise GrammarError("this model has no end token, so no answer could be complete", hint="leave out the grammar")
    try:
        return LLTokenizer(tokenizer_json, n_vocab=vocabulary, eos_token=eos)
    except Exception as error:
        raise GrammarError(f"this model's tokenizer cannot follow grammars: {error}") from error


def new_matcher(tokenizer: Any, grammar: Grammar) -> Any:
    """A matcher at the start of an answer.

    Raises:
        GrammarError: if the grammar is malformed, not supported or too complex; the message names the problem.
    """
    from llguidance import LLMatcher, LLParserLimits  # noqa: PLC0415

    try:
        matcher = LLMatcher(tokenizer, _source(LLMatcher, grammar), log_level=0, limits=LLParserLimits(**_LIMITS))
    except ValueError as error:
        raise GrammarError(f"the {grammar.kind} cannot be followed: {_brief(str(error))}") from error
    if matcher.is_error():
        raise GrammarError(f"the {grammar.kind} cannot be followed: {_brief(matcher.get_error())}")
    return matcher


def _source(matcher: Any, grammar: Grammar) -> str:
    source: str
    if grammar.kind is GrammarKind.REGEX:
        source = matcher.grammar_from_regex(grammar.text)
    elif grammar.kind is GrammarKind.LARK:
        source = matcher.grammar_from_lark(grammar.text)
    else:
        source = matcher.grammar_from_json_schema(
            grammar.text or '{"type": "object"}', overrides={"whitespace_pattern": JSON_SPACE}
        )
    return source


def _brief(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:300] + "..."
