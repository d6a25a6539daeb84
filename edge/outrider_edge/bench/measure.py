"""One answer's figures, taken alike for every method."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider_edge.bench.steps import Steps, steps_of
from outrider_edge.session.events import Finished, GenerateRequest, SessionEvent, Tokens

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_edge.bench.methods import Method
    from outrider_edge.bench.processes import Served
    from outrider_edge.device import Device
    from outrider_edge.report import AnswerReport
    from outrider_shared.emulator.control import LinkProcess


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Attributes:
        token_ids: Beyond the prompt.
        ttft_s: From the call to the first token.
        wall_s: From the call to the last token.
        up_bytes, down_bytes: TCP payload, as the emulator counted it; with the prompt.
        steps, rows: Of the cloud, for this session.
        own_accepted: Tokens that the cloud drafted itself, by lookup and by its model.
        own_rows: Rows of those drafts, likewise.
        busy_s: The session's share of the engine's time.
        drafted, accepted, draft_s: Nodes sent, of them committed, seconds in the drafter; wherever that ran.
        cloud_cpu_s: Processor time of the cloud's process; None where the system does not tell.
    """

    token_ids: list[int]
    ttft_s: float
    wall_s: float
    up_bytes: int
    down_bytes: int
    steps: int
    rows: int
    own_accepted: tuple[int, int]
    own_rows: tuple[int, int]
    busy_s: float
    drafted: int
    accepted: int
    draft_s: float
    cloud_cpu_s: float | None


class Stopwatch:
    """Takes a session's events, and the time of the first and the last token."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = self.last = 0.0

    def __call__(self, event: SessionEvent) -> None:
        """See one event."""
        if isinstance(event, Tokens):
            self.last = time.perf_counter()
            self.first = self.first or self.last


class Contestant:
    """A method with its device.

    Args:
        how: The method.
        device: Connected, through the link or beside the cloud.
        link: Whose counters are read; None counts no bytes.
        cloud: Whose processor time is read.
        relay_log: Where the relay tells what it drafted.
    """

    def __init__(
        self, how: Method, device: Device, link: LinkProcess | None, cloud: Served, relay_log: Path | None = None
    ) -> None:
        self.how, self._device, self._link, self._cloud, self._relay_log = how, device, link, cloud, relay_log

    async def answer(self, request: GenerateRequest) -> Sample:
        """Generate one answer and tell what it took."""
        before, cpu_s = await self._bytes(), self._cloud.cpu_s()
        watch = Stopwatch()
        report = await self.report(request, watch)
        after, cpu_end_s = await self._bytes(), self._cloud.cpu_s()
        finished = report.finished
        totals = self._relayed() if self._relay_log is not None else _totals(finished)
        return Sample(
            token_ids=report.token_ids,
            ttft_s=watch.first - watch.started,
            wall_s=watch.last - watch.started,
            up_bytes=after[0] - before[0],
            down_bytes=after[1] - before[1],
            steps=finished.totals.cloud_steps,
            rows=finished.totals.cloud_rows,
            own_accepted=(finished.totals.cloud_lookups, finished.totals.cloud_drafts),
            own_rows=(finished.totals.lookup_rows, finished.totals.draft_rows),
            busy_s=finished.totals.cloud_busy_s,
            drafted=totals["drafted"],
            accepted=totals["accepted"],
            draft_s=totals["draft_s"],
            cloud_cpu_s=None if cpu_s is None or cpu_end_s is None else cpu_end_s - cpu_s,
        )

    async def report(self, request: GenerateRequest, watch: Stopwatch | None = None) -> AnswerReport:
        """Generate one answer; several may be on their way at once."""
        asked = dataclasses.replace(request, pace=self.how.pace, cloud_drafts=self.how.cloud_drafts)
        return await self._device.answer(asked, watch, plain=not self.how.drafts or self._relay_log is not None)

    def relayed_s(self) -> float:
        """Seconds that a drafter beside the target has drafted so far; 0 where there is none."""
        if self._relay_log is None or not self._relay_log.exists():
            return 0.0
        return sum(float(json.loads(line)["draft_s"]) for line in self._relay_log.read_text().splitlines())

    async def steps(self) -> Steps:
        """Of the cloud's engine so far, whoever asked."""
        return await asyncio.to_thread(steps_of, self._cloud.metrics)

    async def _bytes(self) -> tuple[int, int]:
        if self._link is None:
            return 0, 0
        counters = await self._link.counters()
        return counters.up_bytes, counters.down_bytes

    def _relayed(self) -> dict[str, Any]:
        assert self._relay_log is not None
        totals: dict[str, Any] = json.loads(self._relay_log.read_text().splitlines()[-1])
        return totals


def _totals(finished: Finished) -> dict[str, Any]:
    return dataclasses.asdict(finished.totals)
