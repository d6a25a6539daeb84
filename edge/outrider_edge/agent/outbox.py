"""Messages that must arrive, on disk until the broker has them: one file each, named by its number.

Bounded: with `most` waiting, the oldest is given up and counted, because the newest tells how things stand. Numbers are
given by the caller and grow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_edge.agent.disk import Disk


class Outbox:
    """The folder `path`.

    Attributes:
        dropped: Messages given up since the start.
    """

    def __init__(self, disk: Disk, path: Path, most: int = 256) -> None:
        self._disk, self._path, self._most = disk, path, most
        self.dropped = 0
        disk.mkdir(path)

    def put(self, number: int, data: bytes) -> None:
        """Keep a message; the same number again is the same message.

        Raises:
            StorageError: if it cannot be written.
        """
        waiting = self.waiting()
        for old in waiting[: max(0, len(waiting) + 1 - self._most)]:
            self._disk.unlink(self._file(old))
            self.dropped += 1
        self._disk.replace(self._file(number), data)

    def waiting(self) -> list[int]:
        """Numbers that wait, oldest first."""
        return sorted(int(path.stem) for path in self._path.glob("*.msg"))

    def get(self, number: int) -> bytes | None:
        """A message; None if it was given up meanwhile."""
        return self._disk.read(self._file(number))

    def done(self, number: int) -> None:
        """The broker has it."""
        self._disk.unlink(self._file(number))

    def _file(self, number: int) -> Path:
        return self._path / f"{number:012d}.msg"
