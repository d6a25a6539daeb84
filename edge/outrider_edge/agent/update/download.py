"""Fetching one file: from where the last try ended, as fast as allowed, within the window, never past its length.

The part on disk is not trusted: its hash is looked at when it is whole. A part that was torn by a power failure
therefore costs one more download, once.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import urllib3

from outrider_shared.errors import AlteredError, EndlessError, StorageError, TruncatedError, UnavailableError
from outrider_shared.packs.archive import sha256_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from outrider_edge.agent.disk import Disk

_CHUNK_BYTES = 64 << 10
_SYNC_BYTES = 4 << 20
_SPARE_BYTES = 16 << 20  # left free on the disk


@dataclass(frozen=True, slots=True)
class Pace:
    """How to download.

    Attributes:
        bytes_s: Most bytes per second; 0 is no bound.
        go_on: Asked before each piece; raises to stop (window closed, update canceled).
        progress: Told the bytes on disk.
        clock, sleep: Time.
    """

    bytes_s: int = 0
    go_on: Callable[[], None] = lambda: None
    progress: Callable[[int], None] = lambda _done: None
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def download(
    pool: urllib3.PoolManager, url: str, part: Path, length: int, sha256: str | None, disk: Disk, pace: Pace
) -> None:
    """Bring `part` to `length` bytes with that hash.

    Raises:
        UnavailableError: if the connection broke; what came is kept.
        TruncatedError, EndlessError: if the server has fewer or more bytes than were signed.
        AlteredError: if the bytes are others.
        StorageError: if there is no room.
    """
    resumed = 0 < disk.size(part) <= length
    try:
        _fetch(pool, url, part, length, disk, pace)
        _check(part, sha256)
    except (AlteredError, TruncatedError):
        disk.unlink(part)
        if not resumed:
            raise
        _fetch(pool, url, part, length, disk, pace)
        try:
            _check(part, sha256)
        except AlteredError:
            disk.unlink(part)
            raise


def _fetch(pool: urllib3.PoolManager, url: str, part: Path, length: int, disk: Disk, pace: Pace) -> None:
    have = disk.size(part)
    if have > length:
        disk.unlink(part)
        have = 0
    if have == length:
        return
    if disk.free_bytes(part.parent) < length - have + _SPARE_BYTES:
        raise StorageError(f"{url} needs {length - have} bytes more, {disk.free_bytes(part.parent)} are free")
    pace.go_on()
    try:
        headers = {"Range": f"bytes={have}-"} if have else {}
        response = pool.request("GET", url, headers=headers, preload_content=False)
        try:
            have = _begin(response, url, part, have, disk)
            _take(response, url, part, have, length, disk, pace)
        finally:
            # Not `release_conn`: what an endless answer still has to say is not waited for.
            response.close()
    except urllib3.exceptions.HTTPError as error:
        raise UnavailableError(f"{url} broke off: {error}") from error


def _begin(response: urllib3.BaseHTTPResponse, url: str, part: Path, have: int, disk: Disk) -> int:
    """How many bytes stand when the body begins."""
    if response.status == 206 and response.headers.get("content-range", "").startswith(f"bytes {have}-"):
        return have
    if response.status == 404:
        raise TruncatedError(f"{url} is listed, and the server does not have it")
    if response.status not in {200, 416}:
        raise UnavailableError(f"{url}: status {response.status}")
    disk.unlink(part)
    if response.status == 416:
        raise TruncatedError(f"{url} ends before byte {have}")
    return 0


def _take(
    response: urllib3.BaseHTTPResponse, url: str, part: Path, have: int, length: int, disk: Disk, pace: Pace
) -> None:
    begun, first, synced = pace.clock(), have, have
    for piece in response.stream(_CHUNK_BYTES):
        if have + len(piece) > length:
            disk.unlink(part)
            raise EndlessError(f"{url} goes on past its signed {length} bytes")
        disk.append(part, piece)
        have += len(piece)
        if have - synced >= _SYNC_BYTES or have == length:
            disk.sync(part)
            synced = have
        pace.progress(have)
        if pace.bytes_s:
            ahead_s = (have - first) / pace.bytes_s - (pace.clock() - begun)
            if ahead_s > 0:
                pace.sleep(ahead_s)
        if have < length:
            pace.go_on()
    if have < length:
        raise TruncatedError(f"{url} ended at {have} of {length} bytes")


def _check(part: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    found = sha256_of(part)
    if found != sha256:
        raise AlteredError(f"{part.name} has sha256 {found}, signed is {sha256}")


def digest(data: bytes) -> str:
    """The sha256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()
