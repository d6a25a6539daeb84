"""What the broker refused, from the file that `broker_watch` writes, into the audit log.

The place in the file is kept beside it after each reading, so nothing is left out while the service is away. Equal
refusals of one reading are one entry with their number, and at most `_MOST` are noted per reading: a device that
hammers cannot fill the registry.
"""

from __future__ import annotations

import asyncio
import collections
import json
from typing import TYPE_CHECKING

from outrider_cloud.fleet.broker_watch import REFUSED
from outrider_shared.errors import ConflictError, OutriderError, RefusedError

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.fleet.controller import Controller

_EVERY_S = 1.0
_MOST = 20
_PIECE_BYTES = 1 << 20
_ACTIONS = {
    "publish": "publish.refused", "subscribe": "subscribe.refused", "takeover": "session.taken_over",
    "connect": "connection.refused",
}  # fmt: skip


async def follow(folder: Path, controller: Controller, every_s: float = _EVERY_S) -> None:
    """Note refusals until cancelled."""
    while True:
        lines, offset = await asyncio.to_thread(_read, folder)
        if lines:
            await controller.refused_by_broker(told(lines))
            await asyncio.to_thread((folder / "refused.offset").write_text, str(offset), "utf-8")
        await asyncio.sleep(every_s)


def told(lines: list[bytes]) -> list[tuple[str, str, str, OutriderError]]:
    """The entries for these lines: (client, action, topic, error)."""
    counts: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for line in lines:
        try:
            found = json.loads(line)
            counts[str(found["client"]), str(found["what"]), str(found["topic"])] += 1
        except (ValueError, KeyError, TypeError):
            continue  # a line that a full disk tore
    entries = [
        (client, _ACTIONS[what], topic or client, _error(client, what, topic, times))
        for (client, what, topic), times in counts.most_common(_MOST)
        if what in _ACTIONS
    ]
    if len(counts) > _MOST:
        more = RefusedError(f"{len(counts) - _MOST} further kinds of refusal at the same time are in {REFUSED}")
        entries.append(("broker", "publish.refused", "*", more))
    return entries


def _error(client: str, what: str, topic: str, times: int) -> OutriderError:
    if what == "connect":
        return RefusedError(f"{topic}, {times} times")
    if what == "takeover":
        return ConflictError(f"{client} connected again while connected, {times} times: a second holder of its key?")
    return RefusedError(f"{client!r} may not {what} on {topic!r}; tried {times} times")


def _read(folder: Path) -> tuple[list[bytes], int]:
    """Whole lines behind the place that was kept, and the place behind them."""
    file, place = folder / REFUSED, folder / "refused.offset"
    if not file.exists():
        return [], 0
    try:
        offset = int(place.read_text("utf-8"))
    except (OSError, ValueError):
        offset = 0
    if offset > file.stat().st_size:
        offset = 0  # a new file was begun
    with file.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(_PIECE_BYTES)
    whole = data[: data.rfind(b"\n") + 1]
    return whole.splitlines(), offset + len(whole)
