"""The new archive out of the installed pack and a difference: zstd with the old archive as prefix.

The difference is not trusted: it may make at most `length` bytes, and what it made counts only if it has the signed
hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import zstandard

from outrider_shared.errors import AlteredError
from outrider_shared.packs.archive import sha256_of, write_archive

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_edge.agent.disk import Disk


def apply_delta(
    pack: Path, base_sha256: str, difference: bytes, part: Path, length: int, sha256: str, disk: Disk
) -> None:
    """Write the new archive to `part`.

    Args:
        pack: The installed pack; its archive is made again.
        base_sha256: Which archive that must give.
        difference: As published.
        part: Where the new archive goes.
        length: What it must have.
        sha256: What it must be.
        disk: File system.

    Raises:
        AlteredError: if base, difference or result are not what they should be; the full file is the way then.
        StorageError: if there is no room.
    """
    base = part.with_name(part.name + ".base")
    try:
        write_archive(pack, base)
        if sha256_of(base) != base_sha256:
            raise AlteredError(f"the pack in {pack} is not the archive {base_sha256} that the difference is from")
        prefix = zstandard.ZstdCompressionDict(base.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    finally:
        disk.unlink(base)
    try:
        decompressor = zstandard.ZstdDecompressor(dict_data=prefix, max_window_size=1 << 31)
        frame = zstandard.get_frame_parameters(difference)
        if frame.content_size != length:
            raise AlteredError(f"the difference makes {frame.content_size} bytes, signed are {length}")
        made = decompressor.decompress(difference, max_output_size=length)
    except zstandard.ZstdError as error:
        raise AlteredError(f"the difference cannot be applied: {error}") from error
    disk.unlink(part)
    disk.put(part, made)
    disk.sync(part)
    if sha256_of(part) != sha256:
        disk.unlink(part)
        raise AlteredError(f"the difference made another file than {sha256}")
