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
import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from outrider_edge.agent.disk import finished
from outrider_edge.agent.update.journal import Record
from outrider_edge.agent.update.slots import BUNDLED, NAMES, Slots
from outrider_edge.agent.update.work import INCOMING, Doer, Part
from outrider_shared.errors import (
    AlteredError,
    MismatchError,
    OutriderError,
    ProbationError,
    UnavailableError,
    UnlistedError,
)
from outrider_shared.fleet.desired import Assignment, Config
from outrider_shared.fleet.messages import UpdateState
from outrider_shared.fleet.session import Retry

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from outrider_edge.agent.disk import Disk
    from outrider_edge.agent.host import Host
    from outrider_edge.agent.update.trust import Artifact

_log = structlog.get_logger()
_REST_S = 10.0  # how long a switch waits for a moment in which nobody waits for an answer


@dataclass(frozen=True, slots=True)
class Means:
    """What comes in from the rim.

    Attributes:
        wall: Unix time.
        retry_s: Wait after a connection that broke, or while the window is closed.
        look_s: How often probation is looked at.
        reconnect: Waits of the connection to the broker.
    """

    wall: Callable[[], float] = time.time
    retry_s: float = 30.0
    look_s: float = 1.0
    reconnect: Retry = field(default_factory=Retry)


class Updater:
    """One device's updates.

    Args:
        folder: For slots, journal and downloads.
        doer: Does what takes long.
        host: Swaps drafts.
        slots: The two places.
        disk: File system.
        tell: Called with each record and the share of the download, after it is on disk.
        means: Clocks.
    """

    def __init__(
        self,
        folder: Path,
        doer: Doer,
        host: Host,
        slots: Slots,
        disk: Disk,
        tell: Callable[[Record, float], None],
        means: Means | None = None,
    ) -> None:
        self._journal, self._part_folder = folder / "journal.json", folder / INCOMING
        self._doer, self._host, self._disk = doer, host, disk
        self._tell, self._means = tell, means or Means()
        self._loaded: Path | None = None
        self._known: Artifact | None = None  # of the present assignment, looked up by this process
        self._done = 0.0
        self._before = (host.usage.requests, host.usage.draft_errors)  # when the pack in use was loaded
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
        fresh = Record(
            assignment.rollout,
            assignment.attempt,
            assignment.target,
            assignment.sha256,
            UpdateState.ASSIGNED,
            previous=self.slots.current(),
            number=self.record.number + 1,
        )
        await finished(self._write, fresh)
        return True

    async def cancel(self, state: UpdateState = UpdateState.CANCELED) -> None:
        """End an update that runs; an unproven pack gives way to the proven one."""
        if self.record.state.final:
            return
        if self.record.switched:
            await finished(self._go_back, ProbationError(f"{state} before the verdict"))
            await self._load()
            return
        await finished(self._clean)
        await self._go(state)

    async def run(self) -> None:
        """Go on until the update ended. Cancel the task to stop; it can be run again."""
        try:
            while not self.record.state.final:
                try:
                    await self._step()
                except OutriderError as error:
                    await self._failed(error)
        finally:
            await self._doer.close()

    async def _failed(self, error: OutriderError) -> None:
        """What a step that raised means."""
        if isinstance(error, UnavailableError) and not self.record.doomed:
            # Once switched there is nothing to fetch: it is the host that does not swap now, and may soon.
            if not self.record.switched:
                await finished(self._deferred, error)
            await asyncio.sleep(self._means.retry_s)
        elif self.record.switched:
            await finished(self._go_back, error)
            await self._load()
        else:
            never = isinstance(error, MismatchError | UnlistedError)
            await finished(self._end, UpdateState.REJECTED if never else UpdateState.FAILED, error)

    async def _step(self) -> None:
        record, state = self.record, self.record.state
        if record.doomed:
            raise ProbationError(record.message)
        if state in {UpdateState.ASSIGNED, UpdateState.DEFERRED}:
            await self._choose()
        elif state is UpdateState.DOWNLOADING:
            await self._doer.do(Part.GET, await self._artifact(), self.config, progress=self._progress)
            await self._go(UpdateState.VERIFYING)
        elif state is UpdateState.VERIFYING:
            await self._doer.do(Part.INSTALL, await self._artifact(), record.slot, self.config)
            await self._go(UpdateState.STAGED)
        elif state is UpdateState.STAGED:
            await self._go(UpdateState.SELF_TEST)
        elif state is UpdateState.SELF_TEST:
            golden = () if not record.slot else (await self._artifact()).info.golden
            await self._doer.do(Part.TRY, record.slot, golden)
            await self._doer.close()
            await self._go(UpdateState.SWITCHED, code="", message="", since=self._means.wall(), boots=0)
        elif state is UpdateState.SWITCHED:
            await finished(self.slots.use, record.slot)
            self._before = (self._host.usage.requests, self._host.usage.draft_errors)
            with contextlib.suppress(TimeoutError):  # to load weights beside an answer slows it
                await asyncio.wait_for(self._host.at_rest(), _REST_S)
            await self._load()
            await self._go(UpdateState.PROBATION, since=self._means.wall())
        else:
            await self._probation()

    async def _choose(self) -> None:
        """Where the pack is to come from: a slot that has it, or the server."""
        if self.record.target == BUNDLED:
            await self._go(UpdateState.STAGED, slot="", code="", message="")
            return
        self._known = None
        artifact = await self._artifact()
        held = await self._doer.do(Part.HOLDING, artifact.sha256)
        if held is not None:
            await self._go(UpdateState.STAGED, slot=held, code="", message="")
            return
        await self._go(UpdateState.DOWNLOADING, slot=self.slots.other(), code="", message="")

    async def _artifact(self) -> Artifact:
        """What the repository said when this attempt began or went on, at the earliest when this process started."""
        if self._known is None:
            self._known = await self._doer.do(Part.LOOK, self.record.target, self.record.sha256)
        return self._known

    async def _probation(self) -> None:
        """Wait for the verdict: enough answers, or enough time, without a failed draft."""
        usage, config, (requests, errors) = self._host.usage, self.config, self._before
        await self._load()
        while True:
            if usage.draft_errors > errors:
                raise ProbationError(f"{usage.draft_errors - errors} draft passes failed with the new pack")
            old_s = self._means.wall() - self.record.since
            if usage.requests - requests >= config.probation_requests or old_s >= config.probation_s:
                await self._go(UpdateState.COMMITTED)
                await finished(self._clean)
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

    def _progress(self, share: float) -> None:
        self._done = share
        self._save()

    async def _go(self, state: UpdateState, **changes: Any) -> None:
        """On to another state, beside the loop: writing waits for the disk, and answers do not."""
        await finished(self._save, state=state, **changes)

    def _save(self, **changes: Any) -> None:
        self._write(dataclasses.replace(self.record, **changes, number=self.record.number + 1))

    def _write(self, record: Record) -> None:
        self._disk.replace(self._journal, record.to_json())
        self.record = record
        self._tell(record, self._done)
