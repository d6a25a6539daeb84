"""What both sides need of the file system."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from outrider_shared.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Errors of the file system become ours.

    Raises:
        StorageError: naming `path` and what the system said.
    """
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror or error}",
            hint="is the disk full, read-only or failing, or the file another user's?",
        ) from error
