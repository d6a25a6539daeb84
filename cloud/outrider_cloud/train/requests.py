"""The bundled example requests: held-out smart-home requests, as varied as the held-out part is."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from outrider_cloud.train.corpus import stable_hash
from outrider_cloud.train.home import HomeRow, kind, shorten


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
    """What a client sends, and the names and ids in the house to check an answer against."""
    chat = shorten(row, salt=0)
    text = row.request
    if row.key % 2:
        text = text[:1].upper() + text[1:]
    messages = [{"role": "system", "content": chat.messages[0].content}, {"role": "user", "content": text}]
    return {"messages": messages, "devices": list(chat.devices)}


def write_requests(path: Path, requests: list[dict[str, Any]]) -> None:
    """One JSON object per line."""
    path.write_text("".join(json.dumps(request, ensure_ascii=False) + "\n" for request in requests), encoding="utf-8")
