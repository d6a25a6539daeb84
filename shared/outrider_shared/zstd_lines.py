"""Lines of a zstandard file, one in memory at a time, that know where the archive ends.

A reader that asks zstandard's stream for more until nothing comes cannot tell an archive that was cut off (a download
that broke) from one that is whole. Here a frame that does not end is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK_BYTES = 1 << 16


def zstd_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines with their ends, of one frame or of several behind each other.

    Raises:
        zstandard.ZstdError: the file is damaged, or ends within a frame; the lines before that were yielded.
    """
    rest = b""
    for part in _contents(file):
        whole, newline, rest = (rest + part).rpartition(b"\n")
        # Cut at newlines alone: `splitlines` also cuts at carriage returns.
        yield from (line + newline for line in whole.split(b"\n") if newline)
    if rest:
        yield rest


def _contents(file: BinaryIO) -> Iterator[bytes]:
    frame = zstandard.ZstdDecompressor().decompressobj()
    started = False
    while chunk := file.read(_CHUNK_BYTES):
        while chunk:
            started = True
            yield frame.decompress(chunk)
            if not frame.eof:
                break
            chunk, frame, started = frame.unused_data, zstandard.ZstdDecompressor().decompressobj(), False
    if started:
        raise zstandard.ZstdError("the archive ends early: it was cut off")
