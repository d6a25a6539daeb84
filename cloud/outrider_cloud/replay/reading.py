"""Reading a store's segments, also while a service writes them and after it was killed."""

from __future__ import annotations

import re
import time
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_cloud.replay.records import FRAME, MOST_BYTES, Header, Record, read_header, read_record
from outrider_shared.errors import ConfigError, StorageError
from outrider_shared.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = re.compile(r"^(\d{12})\.replay$")


@dataclass
class Contents:
    """What a reader met.

    Attributes:
        segments: Read.
        expired: Segments left alone because their time is over.
        torn: Segments that end in the middle of a record, or are damaged: what stands before that was read.
    """

    segments: int = 0
    expired: int = 0
    torn: int = 0


def segments(folder: Path) -> list[Path]:
    """A store's segments, oldest first."""
    with storage_errors(folder):
        return sorted(path for path in folder.iterdir() if _NAME.match(path.name))


def read_store(folder: Path, contents: Contents, now_s: float | None = None) -> Iterator[tuple[Header, Record]]:
    """All records, oldest first, while others may write; fills in `contents`. Raises ConfigError, StorageError."""
    if not folder.is_dir():
        raise ConfigError(f"no folder at {folder}", hint="--store is what `outrider cloud serve --replay-dir` wrote")
    now_s = time.time() if now_s is None else now_s
    for path in segments(folder):
        found = frames(path, contents)
        first = next(found, None)
        if first is None:
            continue
        contents.segments += 1
        header = first[0]
        if now_s >= header.expires_s:
            contents.expired += 1
            continue
        for _, payload in found:
            try:
                yield header, read_record(payload, header)
            except StorageError:
                contents.torn += 1
                break


def frames(path: Path, contents: Contents | None = None) -> Iterator[tuple[Header, bytes]]:
    """The header (with its payload), then each record's payload, up to the first that is not whole."""
    header: Header | None = None
    try:
        with path.open("rb") as file:
            while start := file.read(FRAME.size):
                size, check = FRAME.unpack(start) if len(start) == FRAME.size else (0, 1)
                payload = file.read(size) if size <= MOST_BYTES else b""
                if len(payload) != size or zlib.crc32(payload) != check:
                    raise StorageError("not whole")
                header = header or read_header(payload)
                yield header, payload
    except FileNotFoundError:
        return  # the writer dropped it meanwhile
    except StorageError:
        if contents is not None:
            contents.torn += 1
    except OSError as error:
        raise StorageError(f"{path}: {error.strerror or error}") from error
