"""What a training text is, and the reading of data files.

A file that cannot be read is an error that names the file and the line: silent skipping would hide a download that
was cut off.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import zstandard

from outrider_shared.errors import InputError
from outrider_shared.zstd_lines import zstd_lines

HELD_OUT_SHARE = 1 / 48


class CorpusError(InputError):
    """A data file is missing, cut off, or holds a line that is not what it should be."""

    code = "invalid_data"


@dataclass(frozen=True)
class Call:
    """One tool call of the assistant."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Message:
    """One turn; `calls` is only set for the assistant."""

    role: str
    content: str
    calls: tuple[Call, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A whole conversation, and which data set it comes from."""

    messages: tuple[Message, ...]
    source: str
    devices: tuple[str, ...] = field(default=())


def stable_hash(*parts: object) -> int:
    """64-bit hash that is the same in every process and on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def is_held_out(request: str) -> bool:
    """Whether a request belongs to the validation part: a function of its text alone, whatever its case."""
    return stable_hash("held-out", request.strip().lower()) < HELD_OUT_SHARE * 2**64


def read_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row) of a `.jsonl.zst` file, place being `file:line` for error messages.

    Raises CorpusError for a missing file, a damaged archive, or a line that is no JSON object.
    """
    place = f"{path}:0"
    try:
        with path.open("rb") as file:
            for number, line in enumerate(zstd_lines(file), start=1):
                place = f"{path}:{number}"
                yield place, _parse(place, line.decode("utf-8"))
    except OSError as error:
        raise CorpusError(f"{path}: cannot be opened: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{place}: not UTF-8: {error.reason} at byte {error.start}") from error
    except zstandard.ZstdError as error:
        raise CorpusError(f"{place}: damaged after this line: {error}", hint="download the file again") from error


def _parse(place: str, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise CorpusError(f"{place}: not JSON: {error.msg} at column {error.colno}") from error
    if not isinstance(row, dict):
        raise CorpusError(f"{place}: expected a JSON object, found {type(row).__name__}")
    return row
