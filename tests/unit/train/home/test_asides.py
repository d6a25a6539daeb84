"""Help data as chats."""

from pathlib import Path

import pytest

from outrider_cloud.train.home import asides
from outrider_cloud.train.texts.corpus import CorpusError
from unit.train.rows import write_rows


def test_dialogues_keep_text_turns_and_end_with_the_assistant(tmp_path: Path):
    turns = [
        {"role": "user", "text": "A latte,", "api": []},
        {"role": "user", "text": "please."},
        {"role": "agent", "api": {"get_menu": {}}},
        {"role": "agent", "text": "Sure."},
        {"role": "user", "text": "Thanks"},
    ]
    write_rows(tmp_path / asides.TASKMASTER_FILE, [{"set": "coffee", "turns": turns}])
    (chat,) = asides.read_taskmaster(tmp_path)
    assert [(m.role, m.content) for m in chat.messages[1:]] == [("user", "A latte, please."), ("assistant", "Sure.")]


def test_a_page_becomes_a_question_and_an_answer(tmp_path: Path):
    write_rows(tmp_path / asides.TLDR_FILE, [{"page": "common/ls", "text": "# ls\n\n> List files.\n"}])
    (chat,) = asides.read_tldr(tmp_path)
    assert [m.content for m in chat.messages] == ["How do I use ls?", "> List files."]


def test_rows_of_another_shape_are_named(tmp_path: Path):
    write_rows(tmp_path / asides.TASKMASTER_FILE, [{"set": "coffee"}])
    with pytest.raises(CorpusError, match=r"zst:1: not a Taskmaster dialogue"):
        asides.read_taskmaster(tmp_path)
    write_rows(tmp_path / asides.TLDR_FILE, [{"page": "x"}])
    with pytest.raises(CorpusError, match=r"zst:1: not a tldr page"):
        asides.read_tldr(tmp_path)
