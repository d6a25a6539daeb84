"""Requests from files: their kinds, their domains, and lines that are broken."""

from __future__ import annotations

import json

import pytest
import zstandard
from tokenizers import Tokenizer

from outrider_pair.texts import read_texts
from outrider_shared.errors import ConfigError
from outrider_shared.packs import bundled_pack, read_pack

ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}], "devices": ["Lamp"]},
    {"question": "1 + 1?", "answer": "2"},
    {"turns": ["Write.", "Again."]},
    {"messages": [{"role": "user", "content": "hi"}], "answer": "hello again"},
    {"text": "# am\n\n> Android activity manager, with many words.", "domain": "help"},
]


def read(path, **changes):
    pack = read_pack(bundled_pack())
    tokenizer = Tokenizer.from_file(str(pack.tokenizer_path))
    settings = {"longest": 400, "limit": None, "skip_broken": False, **changes}
    return read_texts([str(path)], tokenizer, pack.chat_template or "", **settings)


@pytest.fixture
def lines() -> str:
    return "".join(json.dumps(row) + "\n" for row in ROWS)


def test_every_kind_of_row_is_a_request(tmp_path, lines):
    (tmp_path / "mix.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    rows = read(tmp_path / "mix.jsonl.zst").rows
    assert [row.domain for row in rows] == ["mix", "mix", "mix", "mix", "help"]
    assert [row.reference for row in rows[:4]] == ["hello", "2", "", "hello again"]
    assert rows[4].reference.endswith("many words.")
    assert rows[0].devices == ("Lamp",)


@pytest.mark.parametrize("broken", ['{"question": "cut of', "[1]", '{"other": 1}', '{"messages": [{"role": "user"}]}'])
def test_a_broken_line_is_named_or_left_out(tmp_path, lines, broken):
    path = tmp_path / "data.jsonl"
    path.write_text(lines + broken + "\n")
    with pytest.raises(ConfigError, match=r"data\.jsonl:6 .*--skip-broken"):
        read(path)
    texts = read(path, skip_broken=True)
    assert (len(texts.rows), texts.broken) == (5, [f"{path}:6"])


def test_what_does_not_fit_is_counted_and_nothing_left_is_an_error(tmp_path, lines):
    path = tmp_path / "data.jsonl"
    path.write_text(lines + json.dumps({"question": "why " * 200}) + "\n")
    assert read(path, longest=100).too_long == 1
    assert len(read(path, limit=2).rows) == 2
    with pytest.raises(ConfigError, match="no request of at most 1 tokens"):
        read(path, longest=1)


def test_missing_and_damaged_files_are_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl.zst").write_bytes(b"no archive")
    with pytest.raises(ConfigError, match="damaged"):
        read(tmp_path / "bad.jsonl.zst")
