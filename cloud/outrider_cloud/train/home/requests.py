"""Requests of the bundled pair's held-out data: the smart-home ones that ship, and a file per domain to evaluate on."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from outrider_cloud.train.home.asides import read_taskmaster, read_tldr
from outrider_cloud.train.home.rows import HomeRow, kind, read_home, shorten, split
from outrider_cloud.train.texts.chat import body
from outrider_cloud.train.texts.corpus import Chat, stable_hash


def choose_requests(held_out: list[HomeRow], count: int) -> list[dict[str, Any]]:
    """`count` requests in a fixed order, taken in turn from each kind (persona and tool), never two of one text."""
    kinds: dict[tuple[str, str], list[HomeRow]] = defaultdict(list)
    seen: set[str] = set()
    for row in sorted(held_out, key=lambda row: row.key):
        if row.request.lower() not in seen:
            seen.add(row.request.lower())
            kinds[row.persona, kind(row)].append(row)
    chosen: list[HomeRow] = []
    while len(chosen) < count and any(kinds.values()):
        for each in sorted(kinds, key=lambda each: stable_hash(*each)):
            if kinds[each] and len(chosen) < count:
                chosen.append(kinds[each].pop())
    return [as_request(row) for row in chosen]


def as_request(row: HomeRow) -> dict[str, Any]:
    """What a client sends, what the data answers, and the names and ids in the house to check an answer against."""
    chat = shorten(row, salt=0)
    text = row.request
    if row.key % 2:
        text = text[:1].upper() + text[1:]
    messages = [{"role": "system", "content": chat.messages[0].content}, {"role": "user", "content": text}]
    return {"messages": messages, "devices": list(chat.devices), "answer": body(row.turns[1])}


def held_out_requests(data: Path, most: int) -> dict[str, list[dict[str, Any]]]:
    """By domain, at most so many requests that no training text has. Raises CorpusError."""
    rows, _dropped = read_home(data)
    _training, held_out = split(rows)
    return {
        "smart-home": choose_requests(held_out, most),
        "dialogues": _asked(read_taskmaster(data, held_out=True), most),
        "help-pages": _asked(read_tldr(data, held_out=True), most),
    }


def _asked(chats: list[Chat], most: int) -> list[dict[str, Any]]:
    """One request of each chat, in an order by hash, never two that begin alike."""
    by_request = {next(m.content for m in chat.messages if m.role == "user").lower(): chat for chat in chats}
    chosen = sorted(by_request, key=lambda text: stable_hash("request", text))[:most]
    return [
        {"messages": [{"role": turn.role, "content": turn.content} for turn in by_request[text].messages]}
        for text in chosen
    ]


def write_requests(path: Path, requests: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(request, ensure_ascii=False) + "\n" for request in requests), encoding="utf-8")
