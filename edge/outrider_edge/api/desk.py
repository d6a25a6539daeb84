"""Answers requests: slots, the outfit of the moment, one session per choice, and what all of it comes to in figures."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import structlog

from outrider_edge.api.asks import LOCAL_MODEL
from outrider_edge.api.choices import End, run_choice
from outrider_edge.api.outfit import Outfit
from outrider_edge.api.redaction import load_redactor
from outrider_edge.api.slots import Slots
from outrider_shared.errors import (
    DeadlineError,
    InputError,
    LimitError,
    MismatchError,
    OutriderError,
    UnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from pathlib import Path

    from outrider_edge.agent.usage import UsageMeter
    from outrider_edge.api.asks import Ask
    from outrider_edge.api.choices import Delta
    from outrider_edge.api.config import Limits, Privacy
    from outrider_edge.api.metrics import Metrics
    from outrider_edge.device import Device
    from outrider_wire.v1 import verifier_pb2 as pb

_DESCRIBE_FRESH_S = 30.0
# How long answers that are cut short may take to say so.
_PART_S = 1.0
_STATUS_S = 3.0
_log = structlog.get_logger(__name__)


class Desk:
    """Takes asks and answers them.

    Args:
        limits: Bounds.
        metrics: Where to count.
        privacy: What is done to texts before they leave.

    Attributes:
        redact: Changes a text before it leaves the device; None changes none.
        slots: Sessions at once.
        usage: What a fleet's agent reads; None without one.
        draining: Nothing new is taken.
    """

    def __init__(self, limits: Limits, metrics: Metrics, privacy: Privacy | None = None) -> None:
        self._limits, self._metrics = limits, metrics
        self.redact = load_redactor(privacy.redact if privacy is not None else "")
        self._hurried = asyncio.Event()
        self._answering: set[asyncio.Queue[Delta | End | BaseException]] = set()
        self._over = False
        self._outfit: Outfit | None = None
        self._described: tuple[float, pb.DescribeResponse] | None = None
        self._swapping = asyncio.Lock()
        self.slots = Slots(limits.concurrent, limits.queue, limits.queue_s)
        self.usage: UsageMeter | None = None
        self.draining = False

    # ---- what is worn ---------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether requests can be answered."""
        return self._outfit is not None and not self.draining

    @property
    def outfit(self) -> Outfit:
        """The pack in use.

        Raises:
            UnavailableError: while it is loading, or when the daemon is about to stop.
        """
        if self._outfit is None:
            raise UnavailableError("the draft model is loading", hint="try again in a moment")
        if self.draining:
            raise UnavailableError("this device is stopping", hint="try again when it is back")
        return self._outfit

    def wear(self, device: Device) -> None:
        """Begin to answer, with an entered device."""
        self._outfit = Outfit.of(device)

    async def swap(self, pack: str | Path) -> str:
        """Put another pack in the place of the present one; answers that are being made keep theirs.

        Args:
            pack: Folder of the pack, or `bundled`.

        Returns:
            The name of the pack now in use.

        Raises:
            PackError: if the pack is damaged.
            MismatchError: if its tokenizer is another; the target would refuse every session.
        """
        async with self._swapping:
            old = self.outfit
            started = time.monotonic()
            device = await asyncio.to_thread(old.device.with_pack, pack)
            ours, theirs = old.device.pack.manifest, device.pack.manifest
            if ours.tokenizer_fingerprint != theirs.tokenizer_fingerprint:
                raise MismatchError(
                    f"pack {theirs.name!r} has tokenizer {theirs.tokenizer_fingerprint[:12]}, "
                    f"in use is {ours.tokenizer_fingerprint[:12]}",
                    hint="packs of one target have one tokenizer; for another target start another daemon",
                )
            self._outfit = Outfit.of(device)
            self._metrics.swaps.inc()
            _log.info("pack swapped", pack=theirs.name, path=str(device.pack.path), took_s=time.monotonic() - started)
            return theirs.name

    async def describe(self) -> pb.DescribeResponse | None:
        """What the cloud holds, asked for at most every half a minute; None while it cannot be reached."""
        now = time.monotonic()
        if self._described is not None and now - self._described[0] < _DESCRIBE_FRESH_S:
            return self._described[1]
        try:
            answer = await self.outfit.device.describe()
        except OutriderError:
            return None
        self._described = (now, answer)
        return answer

    async def learn_names(self) -> None:
        """Ask the cloud what it holds, so that the first answer names its model as the later ones do."""
        await self.describe()

    async def models(self) -> list[str]:
        """Names under which answers can be asked for: the cloud's model first, the draft alone last."""
        answer = await self.describe()
        cloud = [model.name for model in answer.models] if answer is not None else []
        return [*(cloud or ["outrider"]), LOCAL_MODEL]

    async def status(self) -> dict[str, Any]:
        """What is in use, and a round trip to the cloud measured now."""
        device, took_ms = self.outfit.device, 0.0
        try:
            async with asyncio.timeout(_STATUS_S):
                for _ in range(2):  # the first may have to connect, and is no round trip
                    started = time.perf_counter()
                    answer: pb.DescribeResponse | None = await device.describe()
                    took_ms = 1000 * (time.perf_counter() - started)
        except (OutriderError, TimeoutError):
            answer = None
        if answer is not None:
            self._described = (time.monotonic(), answer)
        return {
            "draft": self.outfit.name,
            "cloud": device.cloud,
            "cloud_reachable": answer is not None,
            "model": answer.models[0].name if answer is not None and answer.models else None,
            "rtt_ms": round(took_ms, 2) if answer is not None else None,
            "sessions": self.slots.used,
            "queued": self.slots.queued,
        }

    def model_name(self, ask: Ask) -> str:
        """Who answers."""
        if ask.local_only:
            return LOCAL_MODEL
        return self._described[1].models[0].name if self._described and self._described[1].models else "outrider"

    # ---- answering ------------------------------------------------------------------------------------------------

    async def answer(self, ask: Ask) -> AsyncGenerator[Delta | End]:
        """All choices of an ask as they come, mixed; ends when each had its end.

        Sessions run at their own pace: a slow reader does not hold the cloud, what it has not read waits here.

        Raises:
            OutriderError: of the first choice that failed; the others are cancelled.
        """
        outfit = self.outfit
        async with self.slots.take(len(ask.requests)):
            inbox: asyncio.Queue[Delta | End | BaseException] = asyncio.Queue()
            self._answering.add(inbox)
            if self._over:
                inbox.put_nowait(_stopping())
            tasks = [asyncio.create_task(self._choose(index, ask, outfit, inbox)) for index in range(len(ask.requests))]
            left = len(tasks)
            try:
                while left:
                    item = await inbox.get()
                    if isinstance(item, BaseException):
                        raise item
                    left -= isinstance(item, End)
                    yield item
            finally:
                self._answering.discard(inbox)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _choose(
        self, index: int, ask: Ask, outfit: Outfit, inbox: asyncio.Queue[Delta | End | BaseException]
    ) -> None:
        started, first = time.monotonic(), True
        # An answer that never leaves the device tells nothing of the cloud.
        first_s, follow = 0.0, self.usage.follow() if self.usage is not None and not ask.local_only else None
        try:
            async with asyncio.timeout(self._limits.deadline_s):
                async with contextlib.aclosing(run_choice(index, ask.requests[index], ask, outfit, follow)) as steps:
                    async for step in steps:
                        if isinstance(step, End):
                            self._metrics.ended(step, time.monotonic() - started)
                            if self.usage is not None:
                                self.usage.answered(step.tokens, time.monotonic() - started, first_s, step.totals)
                                self.usage.rtt_ms = outfit.device.rtt_ms
                        elif step.tokens:
                            self._metrics.told(step.tokens)
                            if first:
                                first, first_s = False, time.monotonic() - started
                                self._metrics.first_token_s.observe(first_s)
                        inbox.put_nowait(step)
        except TimeoutError:
            limit_s = self._limits.deadline_s
            inbox.put_nowait(DeadlineError(f"the answer was not complete within {limit_s:g} s"))
        except Exception as error:  # noqa: BLE001 - it is raised where the answer is read
            if self.usage is not None and not isinstance(error, InputError | UnavailableError | LimitError):
                self.usage.draft_failed()
            inbox.put_nowait(error)
        finally:
            if follow is not None:
                follow.close()

    async def drain(self, within_s: float) -> bool:
        """Take nothing new, and wait for what is being answered; whether all of it was.

        What is not complete by then ends with an error that says so.
        """
        self.draining = True
        idle, hurry = asyncio.create_task(self.slots.idle()), asyncio.create_task(self._hurried.wait())
        await asyncio.wait({idle, hurry}, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        drained = not self.slots.used
        self._over = True
        for inbox in self._answering:
            inbox.put_nowait(_stopping())
        await asyncio.wait({idle}, timeout=_PART_S)
        for task in (idle, hurry):
            task.cancel()
        return drained

    def hurry(self) -> None:
        """Wait no longer for what is being answered."""
        self._hurried.set()


def _stopping() -> UnavailableError:
    return UnavailableError("this device stopped before the answer was complete", hint="ask again when it is back")
