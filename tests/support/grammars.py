"""Grammars for the tiny model, whose own tokenizer has no text: its 97 tokens are read as characters here."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback
from tokenizers.models import BPE

from outrider_cloud.grammar.language import new_matcher, new_tokenizer
from outrider_cloud.grammar.matcher import Matcher
from support.models import TINY_EOS, TINY_VOCABULARY

if TYPE_CHECKING:
    from outrider_cloud.model.loading import LoadedModel
    from outrider_shared.grammar import Grammar

LETTERS = [chr(0x20 + i) for i in range(95)] + ["\n", "\t"]


@functools.cache
def _letters() -> Any:
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.decoder = ByteFallback()
    return new_tokenizer(tokenizer.to_str(), TINY_VOCABULARY, [TINY_EOS])


@functools.cache
def _words(tokenizer_json: str, vocabulary: int, eos: frozenset[int]) -> Any:
    return new_tokenizer(tokenizer_json, vocabulary, sorted(eos))


def matcher_of(grammar: Grammar | None, model: LoadedModel) -> Matcher | None:
    """A fresh matcher, compiled in this process."""
    if grammar is None:
        return None
    if model.vocabulary == TINY_VOCABULARY:
        tokenizer = _letters()
    else:
        tokenizer = _words(model.tokenizer.to_str(), model.vocabulary, model.eos)
    return Matcher(new_matcher(tokenizer, grammar), model.vocabulary)
