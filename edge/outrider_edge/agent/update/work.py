"""The heavy parts of an update: looking, fetching, unpacking, trying. Nothing here knows of the journal.

Each can be done again, and broken off at any moment: what it left behind is checked before it is used. `aside` runs
them in a process of their own; `InThread` in a thread of this one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import enum
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from outrider_edge.agent.update.delta import apply_delta
from outrider_edge.agent.update.download import Pace, download
from outrider_edge.agent.update.selftest import self_test
from outrider_edge.agent.update.slots import Label, Slots
from outrider_shared.errors import AlteredError, ClosedWindowError, MismatchError, OutriderError, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import urllib3

    from outrider_edge.agent.disk import Disk
    from outrider_edge.agent.update.trust import Artifact, Catalogue
    from outrider_shared.fleet.artifact import Golden
    from outrider_shared.fleet.desired import Config, Window

INCOMING = "incoming"  # below the agent's state: downloads
_log = structlog.get_logger()
_TOLD = 0.25  # share of a download after which it is told how far it is


class Part(enum.StrEnum):
    """What can be asked for: the names of `Work`'s methods."""

    LOOK = "look"
    HOLDING = "holding"
    GET = "get"
    INSTALL = "install"
    TRY = "try_out"


@dataclass(frozen=True, slots=True)
class Share:
    """Told meanwhile by a process that does a part: how much of a download is there."""

    done: float


class Doer(Protocol):
    """Who does the heavy parts."""

    async def do(self, part: Part, *args: Any, progress: Callable[[float], None] = lambda _share: None) -> Any:
        """One part, with the arguments of that method of `Work`; `progress` may be called from any thread."""

    async def close(self) -> None:
        """Nothing is to be done for a while."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where packs come from."""

    catalogue: Catalogue
    pool: urllib3.PoolManager
    url: str


@dataclass(frozen=True, slots=True)
class Fits:
    """What a pack must be for this device."""

    tokenizer: str
    device_class: str


class Work:
    """One device's heavy parts; one at a time.

    Args:
        folder: For downloads.
        source: Repository.
        slots: The two places.
        fits: What this device takes.
        disk: File system.
        test: The self-test.
        wall: Unix time.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        slots: Slots,
        fits: Fits,
        disk: Disk,
        test: Callable[[Path, Sequence[Golden]], None] = self_test,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._source, self._slots, self._fits, self._disk = folder, source, slots, fits, disk
        self._test, self._wall = test, wall

    def look(self, target: str, sha256: str) -> Artifact:
        """What the repository says now of a target, and whether it is for us.

        Raises:
            UpdateError: if it is not listed, not trusted, or another one than was assigned.
            MismatchError: if it is for other devices.
        """
        artifact = self._source.catalogue.look(target)
        if artifact.sha256 != sha256:
            raise AlteredError(f"assigned is {sha256}, the repository signs {artifact.sha256}")
        if artifact.info.tokenizer != self._fits.tokenizer:
            raise MismatchError(
                f"the pack's tokenizer is {artifact.info.tokenizer[:16]}, this device's {self._fits.tokenizer[:16]}",
                hint="a draft must have its target's tokenizer",
            )
        if artifact.info.device_class != self._fits.device_class:
            raise MismatchError(
                f"the pack is for {artifact.info.device_class}, this device is {self._fits.device_class}"
            )
        return artifact

    def holding(self, sha256: str) -> str | None:
        """The slot that has the pack of that archive already, whole."""
        return self._slots.holding(sha256)

    def get(self, artifact: Artifact, config: Config, progress: Callable[[float], None]) -> None:
        """Bring the archive, by a difference where there is one; as fast and as long as `config` allows."""
        part = self._part(artifact.sha256)
        for old in self._folder.iterdir():
            if not old.name.startswith(artifact.sha256):
                self._disk.unlink(old)
        if self._disk.size(part) or not self._by_delta(artifact, part, config, progress):
            self._download(artifact, config, progress)

    def install(self, artifact: Artifact, slot: str, config: Config) -> None:
        """Unpack it into a slot."""
        if self._slots.holding(artifact.sha256) == slot:
            return
        # Once more: a power failure may have come between the download and here.
        self._download(artifact, config, lambda _share: None)
        part = self._part(artifact.sha256)
        pack = self._slots.fill(slot, part, Label(artifact.path, artifact.sha256))
        if pack.manifest.tokenizer_fingerprint != self._fits.tokenizer:
            raise MismatchError(
                f"the pack in {artifact.path} has tokenizer {pack.manifest.tokenizer_fingerprint[:16]}, "
                f"and says {artifact.info.tokenizer[:16]} outside"
            )
        self._disk.unlink(part)

    def try_out(self, slot: str, golden: Sequence[Golden]) -> None:
        """The self-test of what is in a slot; of the pack that came with the package where it has no name."""
        self._test(self._slots.folder(slot), golden)

    def _download(self, artifact: Artifact, config: Config, progress: Callable[[float], None]) -> None:
        url, part = f"{self._source.url}/targets/{artifact.url_path}", self._part(artifact.sha256)
        pace = self._pace(artifact.length, config, progress)
        download(self._source.pool, url, part, artifact.length, artifact.sha256, self._disk, pace)

    def _by_delta(self, artifact: Artifact, part: Path, config: Config, progress: Callable[[float], None]) -> bool:
        """Make the archive from an installed pack, if there is a way; what goes wrong only costs the attempt."""
        for delta in artifact.info.deltas:
            slot = self._slots.holding(delta.base)
            if slot is None:
                continue
            file = part.with_suffix(".delta")
            try:
                url, pace = f"{self._source.url}/targets/{delta.path}", self._pace(delta.length, config, progress)
                download(self._source.pool, url, file, delta.length, None, self._disk, pace)
                difference = self._disk.read(file) or b""
                folder = self._slots.folder(slot)
                apply_delta(folder, delta.base, difference, part, artifact.length, artifact.sha256, self._disk)
            except OutriderError as error:
                if isinstance(error, UnavailableError):
                    raise
                _log.warning("fleet_delta_refused", code=error.code, reason=error.message)
                self._disk.unlink(file)
                continue
            self._disk.unlink(file)
            return True
        return False

    def _pace(self, length: int, config: Config, progress: Callable[[float], None]) -> Pace:
        told = 0.0

        def go_on() -> None:
            if not inside(config.window, dt.datetime.fromtimestamp(self._wall(), dt.UTC)):
                raise ClosedWindowError("the maintenance window is closed")

        def done(count: int) -> None:
            nonlocal told
            if count / length - told >= _TOLD and count < length:
                told = count / length
                progress(told)

        return Pace(config.bandwidth_bytes_s, go_on, done)

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{sha256}.part"


class InThread:
    """Does the parts in threads of this process."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def do(self, part: Part, *args: Any, progress: Callable[[float], None] = lambda _share: None) -> Any:
        """See `Doer`."""
        more = (progress,) if part is Part.GET else ()
        return await asyncio.to_thread(getattr(self._work, part), *args, *more)

    async def close(self) -> None:
        """See `Doer`."""


def inside(window: Window, now: dt.datetime) -> bool:
    """Whether a time of day is within the window; one that ends before it starts goes over midnight."""
    second = now.hour * 3600 + now.minute * 60 + now.second
    if window.start_s <= window.end_s:
        return window.start_s <= second < window.end_s
    return second >= window.start_s or second < window.end_s
