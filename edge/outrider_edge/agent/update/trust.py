"""Which pack may be installed: The Update Framework (specification 1.0) through python-tuf, errors as ours.

What is kept in `folder` protects against older metadata; the root that the device was enrolled with is where trust
begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuf.api import exceptions as tuf
from tuf.ngclient import Updater

from outrider_edge.agent.update.http import PoolFetcher
from outrider_shared.errors import (
    AlteredError,
    EndlessError,
    ExpiredError,
    MetadataError,
    OutriderError,
    RollbackError,
    StorageError,
    UnavailableError,
    UnlistedError,
    UntrustedError,
)
from outrider_shared.fleet.artifact import ArtifactInfo

if TYPE_CHECKING:
    from pathlib import Path

    import urllib3

_KINDS: tuple[tuple[type[Exception], type[OutriderError]], ...] = (
    (tuf.BadVersionNumberError, RollbackError),
    (tuf.ExpiredMetadataError, ExpiredError),
    (tuf.UnsignedMetadataError, UntrustedError),
    (tuf.LengthOrHashMismatchError, AlteredError),
    (tuf.RepositoryError, MetadataError),
    (tuf.DownloadLengthMismatchError, EndlessError),
    (tuf.DownloadError, UnavailableError),
    (OSError, StorageError),
)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A pack that the fleet's keys vouch for.

    Attributes:
        path: Of the target; `url_path` with its hash, below /targets.
        length, sha256: Of its archive.
        info: Whom it fits.
    """

    path: str
    length: int
    sha256: str
    info: ArtifactInfo

    @property
    def url_path(self) -> str:
        """Where the server has it (consistent snapshots)."""
        folder, _, name = self.path.rpartition("/")
        return f"{folder}/{self.sha256}.{name}"


class Catalogue:
    """The repository as this device believes it."""

    def __init__(self, folder: Path, url: str, root: bytes, pool: urllib3.PoolManager) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._url, self._root = folder, url, root
        self._fetcher = PoolFetcher(pool)

    def look(self, target: str) -> Artifact:
        """Refresh the metadata and find a pack in it.

        Raises:
            UnlistedError: if no role that may vouch for the path lists it.
            MetadataError and its kinds: if the metadata cannot be trusted.
            UnavailableError: if the server cannot be reached.
        """
        try:
            updater = Updater(str(self._folder), f"{self._url}/metadata/", fetcher=self._fetcher, bootstrap=self._root)
            updater.refresh()
            found = updater.get_targetinfo(target)
        except Exception as error:
            raise _typed(error) from error
        if found is None:
            raise UnlistedError(f"{target!r} is not listed by a role that may vouch for it", hint="was it withdrawn?")
        sha256 = found.hashes.get("sha256")
        if sha256 is None:
            raise MetadataError(f"{target!r} is listed without a sha256")
        return Artifact(target, found.length, sha256, ArtifactInfo.from_custom(found.custom))


def _typed(error: Exception) -> OutriderError:
    # A download that broke for another reason hides it as its cause.
    for kind, ours in _KINDS:
        if isinstance(error, kind):
            return ours(f"update metadata: {error}")
    if isinstance(error, OutriderError):
        return error
    return MetadataError(f"update metadata cannot be read: {error!r}")
