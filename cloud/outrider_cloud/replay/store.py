"""A folder of append-only segments: bounded in bytes and in time, and readable after a crash at any moment.

Rules:
    * One process writes at a time (`lock`); any number read meanwhile.
    * A segment that another run began is never appended to: a torn end stays the end of its file, where readers stop.
    * The segment with the oldest records goes when the cap is reached, before more is written, and as a whole.
    * A segment takes records for a `_PARTS`th of the time that they are kept, and goes when its *first* record is due:
      no record stays longer than promised.
    * Files are for their owner alone (0600, the folder 0700).

What it does not do: sync each record. A crash of the machine may lose the newest ones; they are not worth a wait.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_cloud.replay.reading import frames, segments
from outrider_cloud.replay.records import MOST_BYTES, Header, Record, header_bytes, record_bytes
from outrider_shared.errors import ConfigError
from outrider_shared.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import BinaryIO

_PARTS = 16  # of the cap and of the time, a segment's share


@dataclass(frozen=True)
class ReplayConfig:
    """Where refused drafts are kept, how much of them, and how long.

    Attributes:
        folder: Of the segments.
        cap_bytes: All segments together, at most.
        keep_s: A record's life, in seconds.
        context_tokens: Of the text before an answer's first refused draft, how much is kept.
    """

    folder: Path
    cap_bytes: int = 256 << 20
    keep_s: float = 30 * 86400.0
    context_tokens: int = 512

    def __post_init__(self) -> None:
        if self.cap_bytes < 1 << 16 or self.keep_s <= 0 or self.context_tokens < 1:
            raise ConfigError(
                f"a replay store of {self.cap_bytes} bytes for {self.keep_s:g} s with {self.context_tokens} tokens",
                hint="at least 64 KiB, more than no time, and 1 token of context",
            )


@dataclass(frozen=True)
class Kind:
    """What a service's records have in common; see `Header`."""

    target: str
    tokenizer: str
    vocabulary: int
    model: str = ""


class ReplayStore:
    """The writing side. Not for several threads.

    Raises:
        ConfigError: another process writes there.
        StorageError: the folder cannot be made or written.
    """

    def __init__(self, config: ReplayConfig, kind: Kind, clock: Callable[[], float] = time.time) -> None:
        self._config, self._kind, self._clock = config, kind, clock
        self._file: BinaryIO | None = None
        self._path = config.folder
        self._written = 0
        self._header: Header | None = None
        with storage_errors(config.folder):
            config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _locked(config.folder / "lock")
        self._sizes = {path: path.stat().st_size for path in segments(config.folder)}
        self._due = {path: self._due_of(path) for path in self._sizes}
        self.expire()

    @property
    def size_bytes(self) -> int:
        """Of all segments."""
        return sum(self._sizes.values())

    def append(self, record: Record) -> bool:
        """Write a record; False if it is too large to be kept at all. Raises StorageError."""
        now = self._clock()
        share = self._config.cap_bytes // _PARTS
        self.expire()
        header = self._header
        if header is not None and (self._written >= share or now >= header.created_s + self._config.keep_s / _PARTS):
            self._seal()
            header = None
        fresh = header is None
        if header is None:
            kind, keep_s = self._kind, self._config.keep_s
            header = Header(kind.target, kind.tokenizer, kind.vocabulary, kind.model, now, now + keep_s)
        data = (header_bytes(header) if fresh else b"") + record_bytes(record, header)
        if len(data) > min(share, MOST_BYTES):
            return False
        with storage_errors(self._config.folder):
            self._make_room(len(data))
            if self._file is None:  # a new one, or the open one went to make room
                self._begin(header)
                data = data if fresh else header_bytes(header) + data
            self._write(data)
        self._written += len(data)
        self._sizes[self._path] = self._written
        return True

    def expire(self) -> None:
        """Drop what nobody may read any more. Raises StorageError."""
        now = self._clock()
        for path in [path for path, due in self._due.items() if now >= due]:
            self._drop(path)

    def close(self) -> None:
        """Put everything on the disk, and let others write."""
        self._seal()
        os.close(self._lock)

    def _begin(self, header: Header) -> None:
        number = max((int(path.stem) for path in segments(self._config.folder)), default=0) + 1
        self._path = self._config.folder / f"{number:012}.replay"
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        self._file = os.fdopen(os.open(self._path, flags, 0o600), "wb", buffering=0)
        self._header, self._written = header, 0
        self._due[self._path] = header.expires_s

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        try:
            if self._file.write(data) == len(data):
                return
        except OSError:
            self._abandon()
            raise
        self._abandon()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _abandon(self) -> None:
        """What follows a torn record could not be read: the next one begins a segment."""
        if self._file is not None:
            self._file.close()
            self._sizes[self._path] = self._path.stat().st_size
        self._file = self._header = None

    def _seal(self) -> None:
        if self._file is not None:
            with storage_errors(self._path), contextlib.closing(self._file):
                os.fsync(self._file.fileno())
        self._file = self._header = None

    def _make_room(self, wanted: int) -> None:
        while self._sizes and self.size_bytes + wanted > self._config.cap_bytes:
            self._drop(min(self._sizes))

    def _drop(self, path: Path) -> None:
        if self._file is not None and path == self._path:
            self._file.close()
            self._file = self._header = None
        with storage_errors(path):
            path.unlink(missing_ok=True)
        self._sizes.pop(path, None)
        self._due.pop(path, None)

    def _due_of(self, path: Path) -> float:
        """When a segment of an earlier run goes: as was promised then, or as is promised now, whichever is sooner."""
        header = next((header for header, _ in frames(path)), None)
        return 0.0 if header is None else min(header.expires_s, header.created_s + self._config.keep_s)


def _locked(path: Path) -> int:
    handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise ConfigError(
            f"another service writes to {path.parent}", hint="each needs a --replay-dir of its own"
        ) from None
    return handle
