"""Writing a manifest: the last file of a pack to be written, so a directory with a manifest is a whole pack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.errors import PackError
from outrider_shared.packs.reader import MANIFEST, file_entry

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_shared.packs.manifest import FileEntry, Manifest


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Size and sha256 of every file in `folder` but the manifest, by name.

    Raises:
        PackError: A file cannot be read.
    """
    try:
        return {path.name: file_entry(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    except OSError as error:
        raise PackError(f"cannot read {folder}: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`.

    Raises:
        PackError: The file cannot be written.
    """
    try:
        (folder / MANIFEST).write_text(manifest.to_json(), "utf-8")
    except OSError as error:
        raise PackError(f"cannot write {folder / MANIFEST}: {error}", hint="is the disk full or read-only?") from error
