"""The update, step by step: journal first, then do.

    ASSIGNED -> DOWNLOADING -> VERIFYING -> STAGED -> SELF_TEST -> SWITCHED -> PROBATION -> COMMITTED
        |            |  ^                                                          |
        |            v  |                                                          +--> ROLLED_BACK
        +------> DEFERRED            any error before SWITCHED -> FAILED; not for this device -> REJECTED

Rules:

1. The pack in use is never touched before its successor is whole, verified and tried.
2. From SWITCHED to the verdict the proven pack stays in the other slot; nothing else is begun before the verdict.
3. `boot` is called before a draft is loaded, and counts starts of an unproven one: one that kills the process with each
   start is left after `probation_boots`.
4. A pack in use that cannot be read any more is replaced by the other slot's, or by the one that came with the package.

What it does not do: decide whether the new draft is better. The fleet service does, by acceptance rate and latency.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from outrider_edge.agent.update.delta import apply_delta
from outrider_edge.agent.update.download import Pace, download
from outrider_edge.agent.update.journal import Record
from outrider_edge.agent.update.selftest import self_test
from outrider_edge.agent.update.slots import BUNDLED, NAMES, Label, Slots
from outrider_shared.errors import (
    AlteredError,
    ClosedWindowError,
    MismatchError,
    OutriderError,
    ProbationError,
    UnavailableError,
    UnlistedError,
)
from outrider_shared.fleet.desired import Assignment, Config, Window
from outrider_shared.fleet.messages import UpdateState
from outrider_shared.fleet.session import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import urllib3

    from outrider_edge.agent.disk import Disk
    from outrider_edge.agent.host import Host
    from outrider_edge.agent.update.trust import Artifact, Catalogue
    from outrider_shared.fleet.artifact import Golden

_log = structlog.get_logger()


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


@dataclass(frozen=True, slots=True)
class Means:
    """What comes in from the rim.

    Attributes:
        test: The self-test.
        wall: Unix time.
        retry_s: Wait after a connection that broke, or while the window is closed.
        look_s: How often probation is looked at.
        reconnect: Waits of the connection to the broker.
    """

    test: Callable[[Path, Sequence[Golden]], None] = self_test
    wall: Callable[[], float] = time.time
    retry_s: float = 30.0
    look_s: float = 1.0
    reconnect: Retry = field(default_factory=Retry)


class Updater:
    """One device's updates.

    Args:
        folder: For slots, journal and downloads.
        source: Repository.
        host: Swaps drafts.
        slots: The two places.
        fits: What this device takes.
        disk: File system.
        tell: Called with each record and the share of the download, after it is on disk.
        means: Clock and self-test.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        host: Host,
        slots: Slots,
        fits: Fits,
        disk: Disk,
        tell: Callable[[Record, float], None],
        means: Means | None = None,
    ) -> None:
        self._journal, self._part_folder = folder / "journal.json", folder / "incoming"
        self._source, self._host, self._fits, self._disk = source, host, fits, disk
        self._tell, self._means = tell, means or Means()
        self._loaded: Path | None = None
        self._known: Artifact | None = None  # of the present assignment, looked up by this process
        self._done = 0.0
        self.slots = slots
        self.config = Config()
        disk.mkdir(self._part_folder)
        self.record = Record.from_json(disk.read(self._journal))

    def boot(self) -> Path:
        """The pack to start with (rules 3 and 4). Call once, before it is loaded."""
        record = self.record
        if record.switched:
            if record.doomed:
                self._go_back(ProbationError(record.message))
            elif record.boots >= self.config.probation_boots:
                self._go_back(ProbationError(f"{record.boots} starts without a verdict"))
            else:
                self._save(boots=record.boots + 1)
        else:
            self._tell(record, 0.0)
        if not self.slots.whole(self.slots.current()):
            current = self.slots.current()
            other = next((slot for slot in NAMES if slot != current and self.slots.whole(slot)), "")
            _log.error("fleet_slot_damaged", slot=current, instead=other or BUNDLED)
            if record.switched and self.record.switched:
                self._go_back(AlteredError("the new pack is damaged on disk"))
            else:
                self.slots.use(other)
        self._loaded = self.slots.folder(self.slots.current())
        return self._loaded

    async def assign(self, assignment: Assignment) -> bool:
        """Begin what was assigned, unless it is what was done last; returns whether there is something to run."""
        record = self.record
        same = (record.rollout, record.attempt, record.sha256) == (
            assignment.rollout, assignment.attempt, assignment.sha256,
        )  # fmt: skip
        if same:
            return not record.state.final
        await self.cancel(UpdateState.SUPERSEDED)
        self._known, self._done = None, 0.0
        self._write(
            Record(
                assignment.rollout,
                assignment.attempt,
                assignment.target,
                assignment.sha256,
                UpdateState.ASSIGNED,
                previous=self.slots.current(),
                number=self.record.number + 1,
            )
        )
        return True

    async def cancel(self, state: UpdateState = UpdateState.CANCELED) -> None:
        """End an update that runs; an unproven pack gives way to the proven one."""
        if self.record.state.final:
            return
        if self.record.switched:
            self._go_back(ProbationError(f"{state} before the verdict"))
            await self._load()
            return
        self._clean()
        self._save(state=state)

    async def run(self) -> None:
        """Go on until the update ended. Cancel the task to stop; it can be run again."""
        while not self.record.state.final:
            try:
                await self._step()
            except OutriderError as error:
                await self._failed(error)

    async def _failed(self, error: OutriderError) -> None:
        """What a step that raised means."""
        if isinstance(error, UnavailableError) and not self.record.doomed:
            # Once switched there is nothing to fetch: it is the host that does not swap now, and may soon.
            if not self.record.switched:
                self._deferred(error)
            await asyncio.sleep(self._means.retry_s)
        elif self.record.switched:
            self._go_back(error)
            await self._load()
        else:
            never = isinstance(error, MismatchError | UnlistedError)
            self._end(UpdateState.REJECTED if never else UpdateState.FAILED, error)

    async def _step(self) -> None:
        state = self.record.state
        if self.record.doomed:
            raise ProbationError(self.record.message)
        if state in {UpdateState.ASSIGNED, UpdateState.DEFERRED}:
            await self._choose()
        elif state is UpdateState.DOWNLOADING:
            artifact = await asyncio.to_thread(self._artifact)
            await asyncio.to_thread(self._get, artifact)
            self._save(state=UpdateState.VERIFYING)
        elif state is UpdateState.VERIFYING:
            artifact = await asyncio.to_thread(self._artifact)
            await asyncio.to_thread(self._install, artifact)
            self._save(state=UpdateState.STAGED)
        elif state is UpdateState.STAGED:
            self._save(state=UpdateState.SELF_TEST)
        elif state is UpdateState.SELF_TEST:
            golden = () if not self.record.slot else (await asyncio.to_thread(self._artifact)).info.golden
            await asyncio.to_thread(self._means.test, self.slots.folder(self.record.slot), golden)
            self._save(state=UpdateState.SWITCHED, code="", message="", since=self._means.wall(), boots=0)
        elif state is UpdateState.SWITCHED:
            self.slots.use(self.record.slot)
            await self._load()
            self._save(state=UpdateState.PROBATION, since=self._means.wall())
        else:
            await self._probation()

    async def _choose(self) -> None:
        """Where the pack is to come from: a slot that has it, or the server."""
        if self.record.target == BUNDLED:
            self._save(state=UpdateState.STAGED, slot="", code="", message="")
            return
        artifact = self._known = await asyncio.to_thread(self._look)
        held = await asyncio.to_thread(self.slots.holding, artifact.sha256)
        if held is not None:
            self._save(state=UpdateState.STAGED, slot=held, code="", message="")
            return
        self._save(state=UpdateState.DOWNLOADING, slot=self.slots.other(), code="", message="")

    def _artifact(self) -> Artifact:
        """What the repository said when this attempt began or went on, at the earliest when this process started."""
        if self._known is None:
            self._known = self._look()
        return self._known

    def _look(self) -> Artifact:
        """What the repository says now, and whether it is for us."""
        artifact = self._source.catalogue.look(self.record.target)
        if artifact.sha256 != self.record.sha256:
            raise AlteredError(f"assigned is {self.record.sha256}, the repository signs {artifact.sha256}")
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

    def _get(self, artifact: Artifact) -> None:
        part = self._part(artifact.sha256)
        for old in self._part_folder.iterdir():
            if not old.name.startswith(artifact.sha256):
                self._disk.unlink(old)
        if not self._disk.size(part) and self._by_delta(artifact, part):
            return
        pace = self._pace(artifact.length)
        url = f"{self._source.url}/targets/{artifact.url_path}"
        download(self._source.pool, url, part, artifact.length, artifact.sha256, self._disk, pace)

    def _by_delta(self, artifact: Artifact, part: Path) -> bool:
        """Make the archive from an installed pack, if there is a way; what goes wrong only costs the attempt."""
        for delta in artifact.info.deltas:
            slot = self.slots.holding(delta.base)
            if slot is None:
                continue
            file = part.with_suffix(".delta")
            try:
                url = f"{self._source.url}/targets/{delta.path}"
                download(self._source.pool, url, file, delta.length, None, self._disk, self._pace(delta.length))
                difference = self._disk.read(file) or b""
                folder = self.slots.folder(slot)
                apply_delta(folder, delta.base, difference, part, artifact.length, artifact.sha256, self._disk)
            except (AlteredError, OutriderError) as error:
                if isinstance(error, UnavailableError):
                    raise
                _log.warning("fleet_delta_refused", code=error.code, reason=error.message)
                self._disk.unlink(file)
                continue
            self._disk.unlink(file)
            return True
        return False

    def _install(self, artifact: Artifact) -> None:
        part = self._part(artifact.sha256)
        if self.slots.holding(artifact.sha256) == self.record.slot:
            return
        # Once more: a power failure may have come between the download and here.
        url = f"{self._source.url}/targets/{artifact.url_path}"
        pace = self._pace(artifact.length)
        download(self._source.pool, url, part, artifact.length, artifact.sha256, self._disk, pace)
        pack = self.slots.fill(self.record.slot, part, Label(artifact.path, artifact.sha256))
        if pack.manifest.tokenizer_fingerprint != self._fits.tokenizer:
            raise MismatchError(
                f"the pack in {artifact.path} has tokenizer {pack.manifest.tokenizer_fingerprint[:16]}, "
                f"and says {artifact.info.tokenizer[:16]} outside"
            )
        self._disk.unlink(part)

    async def _probation(self) -> None:
        """Wait for the verdict: enough answers, or enough time, without a failed draft."""
        usage, config = self._host.usage, self.config
        requests, errors = usage.requests, usage.draft_errors
        await self._load()
        while True:
            if usage.draft_errors > errors:
                raise ProbationError(f"{usage.draft_errors - errors} draft passes failed with the new pack")
            old_s = self._means.wall() - self.record.since
            if usage.requests - requests >= config.probation_requests or old_s >= config.probation_s:
                self._save(state=UpdateState.COMMITTED)
                self._clean()
                return
            await asyncio.sleep(min(self._means.look_s, max(0.01, config.probation_s - old_s)))

    def _deferred(self, error: UnavailableError) -> None:
        if self.record.state is not UpdateState.DEFERRED or self.record.code != error.code:
            self._save(
                state=UpdateState.DEFERRED, code=error.code, message=error.message, retries=self.record.retries + 1
            )

    def _go_back(self, error: OutriderError) -> None:
        """The proven pack again; it is loaded by `_load`, or by whoever called `boot`."""
        # The verdict first: after a power failure between here and the end, `boot` and `run` carry it out.
        if not self.record.doomed:
            self._save(code=error.code, message=error.message[:1000])
        back = self.record.previous
        self.slots.use(back if self.slots.whole(back) else "")
        self._end(UpdateState.ROLLED_BACK, error, code=self.record.code)

    async def _load(self) -> None:
        """Let the host draft with the pack that the pointer names."""
        wanted = self.slots.folder(self.slots.current())
        if wanted != self._loaded:
            await self._host.swap(wanted)
            self._loaded = wanted

    def _end(self, state: UpdateState, error: OutriderError, code: str = "") -> None:
        _log.warning("fleet_update_ended", state=str(state), code=error.code, reason=error.message)
        # What was downloaded goes first: the disk may be full.
        self._clean()
        self._save(state=state, code=code or error.code, message=error.message[:1000])

    def _clean(self) -> None:
        for old in self._part_folder.iterdir():
            self._disk.unlink(old)

    def _pace(self, length: int) -> Pace:
        told = 0.0

        def go_on() -> None:
            if not inside(self.config.window, dt.datetime.fromtimestamp(self._means.wall(), dt.UTC)):
                raise ClosedWindowError("the maintenance window is closed")

        def progress(done: int) -> None:
            nonlocal told
            self._done = done / length
            if self._done - told >= 0.25 and self._done < 1:
                told = self._done
                self._save()

        return Pace(self.config.bandwidth_bytes_s, go_on, progress)

    def _part(self, sha256: str) -> Path:
        return self._part_folder / f"{sha256}.part"

    def _save(self, **changes: Any) -> None:
        self._write(dataclasses.replace(self.record, **changes, number=self.record.number + 1))

    def _write(self, record: Record) -> None:
        self._disk.replace(self._journal, record.to_json())
        self.record = record
        self._tell(record, self._done)


def inside(window: Window, now: dt.datetime) -> bool:
    """Whether a time of day is within the window; one that ends before it starts goes over midnight."""
    second = now.hour * 3600 + now.minute * 60 + now.second
    if window.start_s <= window.end_s:
        return window.start_s <= second < window.end_s
    return second >= window.start_s or second < window.end_s
