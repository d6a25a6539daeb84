"""What both sides need of the file system."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import TYPE_CHECKING

from outrider_shared.errors import OutriderError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


HINT = "is the disk full, read-only or failing, or the file another user's?"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NATIVE = re.compile(r"\(os error (\d+)\)$")  # how libraries written in Rust say it


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Errors of the file system become ours, also those that a library reports as its own.

    Raises:
        StorageError: naming `path` and what the system said.
    """
    try:
        yield
    except OutriderError:
        raise
    except Exception as error:
        said = _said(error)
        if said is None:
            raise
        raise StorageError(f"{path}: {said}", hint=HINT) from error


def check_writable(path: Path) -> None:
    """Tell before hours are spent that a file could not be written there; folders above it are made.

    Raises:
        StorageError: naming `path` and what the system said.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with path.open("ab"):
            pass
        if new:
            path.unlink()


def is_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it hides, is that of a disk without room."""
    while error is not None:
        native = _NATIVE.search(str(error))
        number = error.errno if isinstance(error, OSError) else int(native[1]) if native else 0
        if number in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


def _said(error: BaseException | None) -> str | None:
    """What the system said, if this error, or one that it hides, is its: torch and safetensors wrap a full disk."""
    while error is not None:
        if isinstance(error, OSError):
            return error.strerror or str(error)
        native = _NATIVE.search(str(error))
        if native:
            return os.strerror(int(native[1]))
        error = error.__cause__ or error.__context__
    return None
