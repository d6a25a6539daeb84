"""Help data in small shares, so that the models know a little beyond the house: dialogues and command-line pages."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from outrider_cloud.train.texts.corpus import Chat, CorpusError, Message, is_held_out, read_rows

TASKMASTER_FILE = "taskmaster.jsonl.zst"
TLDR_FILE = "tldr.pages.jsonl.zst"
_SYSTEMS = {"movies": "You help people to book cinema tickets.", "coffee": "You take orders in a coffee shop."}
_MOST_TURNS = 8


def read_taskmaster(folder: Path, *, held_out: bool = False) -> list[Chat]:
    """Dialogues as plain text turns (no API calls), or those kept from training. Raises CorpusError."""
    chats = []
    for place, row in read_rows(folder / TASKMASTER_FILE):
        try:
            chat = _dialogue(row, held_out=held_out)
        except (KeyError, TypeError) as error:
            raise CorpusError(f"{place}: not a Taskmaster dialogue: {error!r}") from error
        if chat is not None:
            chats.append(chat)
    return chats


def _dialogue(row: dict[str, Any], *, held_out: bool) -> Chat | None:
    turns = row["turns"] if row["set"] == "coffee" else [*row["context"], row["generation"]]
    messages = _merged(turns)[-_MOST_TURNS:]
    while messages and messages[0].role != "user":
        messages = messages[1:]
    while messages and messages[-1].role != "assistant":
        messages = messages[:-1]
    if not messages or is_held_out(messages[0].content) != held_out:
        return None
    return Chat((Message("system", _SYSTEMS[row["set"]]), *messages), "taskmaster")


def _merged(turns: Iterable[dict[str, Any]]) -> list[Message]:
    """Neighbouring turns of one speaker become one message."""
    messages: list[Message] = []
    for turn in turns:
        text = (turn.get("text") or "").strip()
        if not text:
            continue
        role = "user" if turn["role"] == "user" else "assistant"
        if messages and messages[-1].role == role:
            messages[-1] = Message(role, f"{messages[-1].content} {text}")
        else:
            messages.append(Message(role, text))
    return messages


def read_tldr(folder: Path, *, held_out: bool = False) -> list[Chat]:
    """Help pages as one question and one answer, or those that are kept from training. Raises CorpusError."""
    chats = []
    for place, row in read_rows(folder / TLDR_FILE):
        try:
            title, _, body = row["text"].partition("\n")
        except (KeyError, AttributeError) as error:
            raise CorpusError(f"{place}: not a tldr page: {error!r}") from error
        question = f"How do I use {title.lstrip('# ').strip()}?"
        if is_held_out(question) == held_out:
            chats.append(Chat((Message("user", question), Message("assistant", body.strip())), "tldr"))
    return chats
