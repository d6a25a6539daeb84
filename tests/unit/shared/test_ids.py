"""Session ids: unguessable ones are made, malformed ones are refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.errors import ProtocolError
from outrider_shared.ids import new_session_id, parse_session_id


def test_new_ids_are_different_and_well_formed():
    ids = {new_session_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(parse_session_id(text) == text for text in ids)
    assert all(len(text) >= 22 for text in ids)  # 128 bits in base64


@given(st.from_regex(r"[A-Za-z0-9_-]{8,64}", fullmatch=True))
def test_well_formed_ids_are_taken(text: str):
    assert parse_session_id(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short12",
        "x" * 65,
        "with space",
        "with/slash",
        "12345678\n",
        "\n12345678",
        "ünïcödes",
        "\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18",
        "a" * 8 + "\0",
    ],
)
def test_malformed_ids_are_refused(text: str):
    with pytest.raises(ProtocolError, match="malformed"):
        parse_session_id(text)


@given(st.text(max_size=80))
def test_any_text_is_taken_as_it_is_or_refused(text: str):
    fits = re.fullmatch(r"[A-Za-z0-9_-]{8,64}", text, re.ASCII) is not None
    try:
        assert parse_session_id(text) == text
        assert fits
    except ProtocolError:
        assert not fits


def test_a_refusal_does_not_repeat_an_endless_id():
    with pytest.raises(ProtocolError) as refused:
        parse_session_id("x" * 100_000)
    assert len(str(refused.value)) < 300
