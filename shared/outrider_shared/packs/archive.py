"""A pack as one file: an uncompressed tar, the same bytes for the same pack, so that its hash names it.

Read strictly: regular files with plain names, each once, nothing else. Weights do not compress (4 to 11 % with zstd),
and a delta against another archive needs the plain bytes.
"""

from __future__ import annotations

import hashlib
import tarfile
from typing import IO, TYPE_CHECKING

from outrider_shared.errors import PackError
from outrider_shared.packs.manifest import check_file_name

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK_BYTES = 1 << 20


def write_archive(folder: Path, archive: Path) -> None:
    """Pack a folder; names sorted, no times, no owners.

    Raises:
        PackError: if a file cannot be read or written.
    """
    try:
        with archive.open("wb") as out, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for path in sorted(folder.iterdir()):
                if path.name.startswith("."):
                    continue
                entry = tarfile.TarInfo(path.name)
                entry.size, entry.mode = path.stat().st_size, 0o644
                with path.open("rb") as content:
                    tar.addfile(entry, content)
    except (OSError, tarfile.TarError) as error:
        raise PackError(f"cannot pack {folder} into {archive}: {error}") from error


def members(archive: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content, in pieces, of each file.

    Raises:
        PackError: if the archive holds anything but regular files with plain names.
    """
    try:
        with tarfile.open(archive, "r:") as tar:
            seen = set()
            for entry in tar:
                check_file_name(entry.name)
                if not entry.isreg() or entry.name in seen:
                    raise PackError(f"{archive}: {entry.name!r} is no regular file, or is there twice")
                seen.add(entry.name)
                content = tar.extractfile(entry)
                assert content is not None, "a regular file has content"
                yield entry.name, _pieces(content)
    except (OSError, tarfile.TarError) as error:
        raise PackError(f"{archive} is no archive of a pack: {error}") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hex.

    Raises:
        OSError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for piece in _pieces(stream):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(stream: IO[bytes]) -> Iterator[bytes]:
    while piece := stream.read(_CHUNK_BYTES):
        yield piece
