"""An answer on a terminal: what is unverified is between brackets, always."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tokenizers import Tokenizer

from outrider_edge.render import TokenPrinter
from outrider_edge.session.events import Finished, Origin, Retracted, Token, Tokens, Totals, Unverified, Verified
from outrider_shared.packs import bundled_pack, read_pack

UNSEEN = "]\nthe last 2 tokens are the draft model's alone: the cloud did not see them\n"
SEEN = "]\nverified: all of it is the cloud model's own\n"
TAKEN = "]\nthe cloud chose otherwise, 2 unverified tokens are taken back; what stands:\n"


def token(number: int) -> Token:
    return Token(number, Origin.ACCEPTED)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(read_pack(bundled_pack()).tokenizer_path))


@pytest.mark.parametrize(
    ("end", "behind"),
    [
        pytest.param([Finished("unverified", Totals())], UNSEEN, id="the cloud stayed away"),
        pytest.param([Verified((token(6), token(7)))], SEEN, id="verified"),
        pytest.param([Retracted(2)], TAKEN, id="retracted"),
    ],
)  # fmt: skip
def test_what_the_draft_wrote_alone_is_between_brackets(tokenizer, end, behind):
    """However it ends."""
    shown = io.StringIO()
    printer = TokenPrinter(tokenizer, Console(file=shown, highlight=False))
    for event in (Tokens((token(5),)), Unverified((6, 7)), *end):
        printer(event)
    before = tokenizer.decode([5])
    text = tokenizer.decode([5, 6, 7])[len(before) :]
    stands = before if isinstance(end[0], Retracted) else ""
    assert shown.getvalue() == f"{before}[unverified: {text}{behind}{stands}"
