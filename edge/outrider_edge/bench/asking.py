"""Requests to a daemon as bytes on a socket: how they come back, when, and what a client that leaves leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def sent(url: str, path: str, body: bytes) -> AsyncIterator[asyncio.StreamReader]:
    """Where the answer to a POST is read; leaving closes the connection, whatever is still to come."""
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write((head + kind).encode() + body)
        yield reader
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def status_of(reader: asyncio.StreamReader) -> int:
    """The status of the answer."""
    return int((await reader.readline()).split()[1])


async def chunks_of(reader: asyncio.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Events of a stream as they come, but the last, which is no JSON."""
    async for line in reader:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])
