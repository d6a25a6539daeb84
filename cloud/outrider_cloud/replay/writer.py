"""The thread between the service and the store: whoever hands over a record never waits for a disk."""

from __future__ import annotations

import contextlib
import queue
import threading
from typing import TYPE_CHECKING

import structlog

from outrider_shared.errors import StorageError

if TYPE_CHECKING:
    from outrider_cloud.replay.records import Record
    from outrider_cloud.replay.store import ReplayStore

_log = structlog.get_logger(__name__)
_MOST_WAITING = 1024


class ReplayWriter:
    """Owns a store.

    Args:
        store: Where records go.
        context_tokens: What recordings keep before a refused draft.
        look_s: How often old records are looked for when nothing comes.

    Attributes:
        kept: Records written.
        lost: Records that found the queue full, the disk full, or were too large.
    """

    def __init__(self, store: ReplayStore, context_tokens: int, look_s: float = 60.0) -> None:
        self.context_tokens = context_tokens
        self.kept = self.lost = 0
        self._store, self._look_s = store, look_s
        self._queue: queue.Queue[Record | None] = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._run, name="replay", daemon=True)
        self._well = True

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def put(self, record: Record) -> None:
        """Hand over a record; one that finds the queue full is lost."""
        try:
            self._queue.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def stop(self) -> None:
        """Write what waits, and close the store."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join()
        with contextlib.suppress(StorageError):
            self._store.close()
        _log.info("replay store closed", kept=self.kept, lost=self.lost, size_bytes=self._store.size_bytes)

    def _run(self) -> None:
        while True:
            try:
                record = self._queue.get(timeout=self._look_s)
            except queue.Empty:
                self._try(None)
                continue
            if record is None:
                return
            self._try(record)

    def _try(self, record: Record | None) -> None:
        """Append, or look for old records; a disk that fails costs records, and is told once."""
        try:
            if record is None:
                self._store.expire()
            elif self._store.append(record):
                self.kept += 1
            else:
                self.lost += 1
            self._well = True
        except StorageError as error:
            self.lost += record is not None
            if self._well:
                _log.warning("refused drafts cannot be kept", reason=str(error))
            self._well = False
