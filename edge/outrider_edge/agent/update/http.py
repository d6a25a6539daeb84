"""HTTP for the agent: one pool, the fleet's certificates, errors of ours; and the fetcher that python-tuf wants."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import urllib3
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK_BYTES = 64 << 10


def new_pool(ca: Path | None, certificate: Path | None = None, key: Path | None = None) -> urllib3.PoolManager:
    """Connections to the artifact server; silence of 30 s ends a request."""
    tls: dict[str, Any] = {} if ca is None else {"ca_certs": str(ca), "cert_reqs": "CERT_REQUIRED"}
    if certificate is not None:
        tls |= {"cert_file": str(certificate), "key_file": str(key)}
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=10, read=30), retries=False, headers={"User-Agent": "outrider"}, **tls
    )


class PoolFetcher(FetcherInterface):
    """Metadata through the same pool."""

    def __init__(self, pool: urllib3.PoolManager) -> None:
        self._pool = pool

    def _fetch(self, url: str) -> Iterator[bytes]:
        response = self._pool.request("GET", url, preload_content=False)
        if response.status != 200:
            response.close()
            raise DownloadHTTPError(f"{url}: status {response.status}", response.status)
        return response.stream(_CHUNK_BYTES)
