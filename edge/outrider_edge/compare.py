"""Answers the same requests twice over the same connection, drafted and plain, and sets the two side by side.

Plain streaming runs in its own fastest setting: no drafts, the cloud never waits. Both find the prompt in the cloud's
prefix cache (a first call with one token, which is not counted, puts it there), and they take turns to go first.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from outrider_edge.device import Device
    from outrider_edge.report import AnswerReport
    from outrider_edge.session.events import GenerateRequest, SessionEvent

BUNDLED = "bundled"
_SUMS = (
    "cloud_steps", "drafted", "accepted", "uplink_bytes", "downlink_bytes", "draft_bytes", "draft_messages", "draft_s",
    "cloud_rows", "connects", "wall_s",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """One request, answered both ways."""

    title: str
    drafted: AnswerReport
    plain: AnswerReport

    @property
    def identical(self) -> bool:
        """Whether both gave the same tokens."""
        return self.drafted.token_ids == self.plain.token_ids

    def as_dict(self) -> dict[str, Any]:
        """The keys of an answer, with `plain` and `identical_to_plain`."""
        plain = self.plain.as_dict()
        return {"request": self.title, **self.drafted.as_dict(), "plain": plain, "identical_to_plain": self.identical}


def read_requests(path: str | Path) -> list[list[dict[str, Any]]]:
    """Conversations of a JSONL file with `messages` per line, or the bundled held-out ones for the name `bundled`.

    Raises:
        ConfigError: if the file is missing or a line is no conversation; names the line.
    """
    source = files("outrider_shared") / "bundled" / "requests.jsonl" if str(path) == BUNDLED else Path(path)
    try:
        lines = source.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"requests {source} cannot be read: {error}") from error
    conversations = []
    for number, line in enumerate(lines, 1):
        try:
            messages = json.loads(line)["messages"]
            conversations.append([{"role": str(m["role"]), "content": str(m["content"])} for m in messages])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{source}, line {number}, is no conversation: {error!r}") from error
    return conversations


async def compare(
    device: Device,
    requests: Sequence[tuple[str, GenerateRequest]],
    on_start: Callable[[str], None] | None = None,
    on_event: Callable[[SessionEvent], None] | None = None,
) -> list[Pair]:
    """Answer each (title, request) both ways.

    Args:
        device: Connected.
        requests: What to answer.
        on_start: Told the title before the drafted answer begins.
        on_event: Sees the drafted answer's events.

    Raises:
        OutriderError: as `Device.answer`.
    """
    pairs = []
    for number, (title, request) in enumerate(requests):
        await device.answer(dataclasses.replace(request, max_tokens=1), plain=True)
        plain = await device.answer(request, plain=True) if number % 2 else None
        if on_start is not None:
            on_start(title)
        drafted = await device.answer(request, on_event)
        plain = plain or await device.answer(request, plain=True)
        pairs.append(Pair(title, drafted, plain))
    return pairs


def totals(pairs: Sequence[Pair]) -> dict[str, Any]:
    """One object for all pairs: the keys of an answer summed up, `plain` likewise, and each pair in `requests`."""
    each = [pair.as_dict() for pair in pairs]
    return {
        **_sum(each),
        "plain": _sum([answer["plain"] for answer in each]),
        "identical_to_plain": all(pair.identical for pair in pairs),
        "requests": each,
    }


def _sum(answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ids = [token for answer in answers for token in answer["token_ids"]]
    sums = {key: sum(answer[key] for answer in answers) for key in _SUMS}
    return {
        "text": "\n".join(answer["text"] for answer in answers),
        "token_ids": ids,
        **sums,
        "tokens_per_step": len(ids) / max(1, sums["cloud_steps"]),
        "ttft_s": sum(answer["ttft_s"] for answer in answers) / max(1, len(answers)),
    }
