"""The file system as the agent uses it: few primitives, so that a test can cut the power at each of them.

`replace` is how anything that matters is written: new file, sync, rename over the old one, sync of the folder.
Whoever reads finds the old content or the new one and never a part.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from outrider_shared.files import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")


class Disk:
    """The real one. Primitives: mkdir, put, append, sync, sync_folder, rename, unlink."""

    def mkdir(self, path: Path) -> None:
        """Make a folder and its parents."""
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)

    def put(self, path: Path, data: bytes) -> None:
        """Write a whole file; it may not be on the disk before `sync`."""
        with storage_errors(path):
            path.write_bytes(data)

    def append(self, path: Path, data: bytes) -> None:
        """Add to a file."""
        with storage_errors(path), path.open("ab") as stream:
            stream.write(data)

    def sync(self, path: Path) -> None:
        """Wait until a file's content is on the disk."""
        with storage_errors(path), path.open("rb") as stream:
            os.fsync(stream.fileno())

    def sync_folder(self, path: Path) -> None:
        """Wait until a folder's names are on the disk."""
        with storage_errors(path):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        """Give a file or folder another name, over a file that has it."""
        with storage_errors(target):
            source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is there."""
        with storage_errors(path):
            path.unlink(missing_ok=True)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder, if it is there."""
        if path.is_dir():
            for entry in sorted(path.iterdir()):
                self.remove_tree(entry) if entry.is_dir() else self.unlink(entry)
            with storage_errors(path):
                path.rmdir()

    def replace(self, path: Path, data: bytes) -> None:
        """Write a file so that it has the old content or the new one, whatever happens."""
        draft = path.with_name(path.name + ".new")
        self.put(draft, data)
        self.sync(draft)
        self.rename(draft, path)
        self.sync_folder(path.parent)

    def read(self, path: Path) -> bytes | None:
        """The content; None where there is no such file."""
        with storage_errors(path):
            try:
                return path.read_bytes()
            except FileNotFoundError:
                return None

    def size(self, path: Path) -> int:
        """Bytes of a file; 0 where there is none."""
        with storage_errors(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return 0

    def free_bytes(self, path: Path) -> int:
        """Room for us."""
        with storage_errors(path):
            return shutil.disk_usage(path).free


async def finished(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run something that writes in a thread: the loop goes on meanwhile. Who cancels it waits until it is through."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise
