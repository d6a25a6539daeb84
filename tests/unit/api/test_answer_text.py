"""Text of an answer: whole characters, stop strings, and tokens that match them, however tokens are grouped."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from outrider_edge.api.answer_text import AnswerText
from outrider_edge.api.stops import StopScanner
from outrider_edge.api.token_text import TextStream, Vocabulary
from outrider_edge.session.events import Origin, Token
from outrider_shared.packs import bundled_pack

_tokenizer = functools.cache(lambda: Tokenizer.from_file(str(bundled_pack() / "tokenizer.json")))
_vocabulary = functools.cache(lambda: Vocabulary(_tokenizer(), [END]))
END = 1  # <|end|> of the bundled tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return _tokenizer()


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return _vocabulary()


def _run(vocabulary, ids, stops=()):
    """Text, told token ids and their texts, and the count, of an answer that is fed token by token."""
    answer = AnswerText(vocabulary, stops)
    text, told = "", []
    for token in ids:
        piece = answer.push(Token(token, Origin.CLOUD))
        text += piece.text
        told += piece.tokens
        if answer.stopped:
            break
    rest = answer.finish()
    return text + rest.text, [*told, *rest.tokens], answer


@given(ids=st.lists(st.integers(0, 4095), max_size=40))
def test_text_is_what_the_tokenizer_decodes(ids):
    """Token by token, any ids give the text that the tokenizer gives for all of them at once."""
    tokenizer = _tokenizer()
    stream = TextStream(_vocabulary())
    text = "".join(stream.push(token) for token in ids) + stream.flush()
    assert text == tokenizer.decode(ids, skip_special_tokens=True)


def test_characters_split_over_tokens_appear_whole(tokenizer, vocabulary):
    """No piece ever ends in half a character, and the last of its tokens stands for the whole of it."""
    ids = tokenizer.encode("é 温度 🙂🙃!").ids
    answer = AnswerText(vocabulary)
    pieces = [answer.push(Token(token, Origin.CLOUD)) for token in ids] + [answer.finish()]
    assert "".join(piece.text for piece in pieces) == "é 温度 🙂🙃!"
    assert all("\N{REPLACEMENT CHARACTER}" not in piece.text for piece in pieces)
    told = [one for piece in pieces for one in piece.tokens]
    assert [one.token.id for one in told] == ids
    assert "".join(one.text for one in told) == "é 温度 🙂🙃!"
    assert any(one.text == "" for one in told), "some character was split"


def test_stop_string_over_token_borders_is_cut_and_nothing_of_it_leaks(tokenizer, vocabulary):
    """The text ends before the match; the token that completed it is the last one counted, and those behind are not."""
    ids = tokenizer.encode("Turning off the light now. STOP here and more").ids
    text, told, answer = _run(vocabulary, ids, ["STOP he"])
    assert text == "Turning off the light now. "
    assert "".join(one.text for one in told) == text
    joined = ""
    count = 0
    for token in ids:
        count += 1
        joined += vocabulary.bytes_of(token).decode()
        if "STOP he" in joined:
            break
    assert answer.count == count < len(ids)


def test_held_text_comes_out_when_it_is_no_stop(tokenizer, vocabulary):
    """What looked like the start of a stop string is told at the end."""
    text, told, _ = _run(vocabulary, tokenizer.encode("the light ST").ids, ["STOP"])
    assert text == "the light ST"
    assert "".join(one.text for one in told) == text


def test_control_tokens_are_counted_and_not_told(tokenizer, vocabulary):
    ids = [*tokenizer.encode("done").ids, END]
    text, told, answer = _run(vocabulary, ids)
    assert (text, answer.count) == ("done", len(ids))
    assert END not in [one.token.id for one in told]


_TEXT = st.text("abS", max_size=24)
_STOPS = st.lists(st.text("abS", min_size=1, max_size=4), min_size=1, max_size=3)


@given(text=_TEXT, stops=_STOPS, cuts=st.lists(st.integers(0, 24), max_size=6))
def test_scanner_never_leaks_and_never_loses(text, stops, cuts):
    """However the text is cut up: what comes out is the text, or a part of it that ends where a stop string begins."""
    scanner, out, taken = StopScanner(stops), "", 0
    for end in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        out += scanner.push(text[taken:end])
        taken = end
    matched = scanner.matched
    out += scanner.flush()
    assert not any(stop in out for stop in stops)
    if matched is None:
        assert out == text
    else:
        assert text.startswith(out + matched)


@given(text=_TEXT, stops=_STOPS)
def test_character_by_character_the_first_complete_match_ends_the_text(text, stops):
    """Fed in the smallest steps, the text ends where the first stop string was completed."""
    scanner, out = StopScanner(stops), ""
    for end in range(1, len(text) + 1):
        out += scanner.push(text[end - 1])
        complete = any(stop in text[:end] for stop in stops)
        assert (scanner.matched is not None) == complete
        if complete:
            break
    assert text.startswith(out)
