"""The fleet service's brain: takes what devices say into the registry, and carries roll-outs on.

    Plane --arrived--> one transaction: devices, telemetry, progress of updates --> the roll-outs' tests
    every `tick_s`:    one transaction per live roll-out: view --> decide --> carry out
                       then publish every desired state that is pending, then deliver webhooks

Whatever is decided is committed before it is published, and published again until the broker acknowledged it: a
controller that is killed anywhere goes on where it was, and nothing is done twice (devices compare numbers).
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import urllib3

from outrider_cloud.fleet.config import ControllerConfig
from outrider_cloud.fleet.registry import access, desired, devices, members, rollouts, rounds, webhooks
from outrider_cloud.fleet.rollout.decide import decide
from outrider_cloud.fleet.rollout.evidence import Window
from outrider_cloud.fleet.rollout.spec import Spec
from outrider_cloud.fleet.rollout.states import RolloutState
from outrider_shared.errors import OutriderError, StorageError, UnavailableError
from outrider_shared.fleet.messages import Info, Reported, Telemetry, UpdateStatus

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from outrider_cloud.fleet.plane import Arrived, Plane
    from outrider_cloud.fleet.registry.database import Database
    from outrider_cloud.fleet.rollout.evidence import Evidence
    from outrider_shared.fleet.desired import Desired
    from outrider_shared.ids import DeviceId

_log = structlog.get_logger()
_SWEEP_S = 60.0
_JOIN_S = 15.0
_http = urllib3.PoolManager()


@dataclass(slots=True)
class _Live:
    """A roll-out whose tests are fed."""

    sha256: str
    evidence: Evidence
    dirty: bool = False
    join_at: float = 0.0  # when devices that came late are looked for again


@dataclass(slots=True)
class Counters:
    """For /metrics."""

    messages: int = 0
    repeats: int = 0
    refused: int = 0
    published: int = 0
    started: float = field(default_factory=time.time)


class Controller:
    """A `Sink` for the plane, and the loop that moves roll-outs; one per registry.

    Args:
        database: The registry.
        config: See there.
    """

    def __init__(self, database: Database, config: ControllerConfig | None = None) -> None:
        self.database = database
        self.config = config or ControllerConfig()
        self.counters = Counters()
        self._live: dict[str, _Live] = {}
        self._faults: dict[str, str] = {}  # of roll-outs, as told
        self._lock = asyncio.Lock()
        self._changed = asyncio.Condition()
        self._next_sweep, self._births = 0.0, 0
        self._due = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    # Sink

    async def arrived(self, batch: list[Arrived]) -> None:
        """Commit a batch; what raises makes the broker send it again."""
        async with self._lock:
            kept = await asyncio.to_thread(self._take, batch)
        self.counters.messages += len(batch)
        self.counters.repeats += len(batch) - kept
        await self.wake()

    async def refused(self, topic: str, error: OutriderError) -> None:
        """Note a message that was not taken."""
        self.counters.refused += 1
        _log.warning("fleet_message_refused", topic=topic, code=error.code, reason=error.message)
        async with self._lock:
            await asyncio.to_thread(self._note, "broker", "message.refused", topic, error)

    async def refused_by_broker(self, found: list[tuple[str, str, str, OutriderError]]) -> None:
        """Note what the broker did not let through: (client, action, topic, error) of each."""
        self.counters.refused += len(found)
        async with self._lock:
            for client, action, topic, error in found:
                await asyncio.to_thread(self._note, client, action, topic, error)

    def _note(self, actor: str, action: str, subject: str, error: OutriderError) -> None:
        with self.database.transaction() as connection:
            access.note(connection, actor, action, subject, code=error.code, reason=error.message[:500])

    def _take(self, batch: list[Arrived]) -> int:
        with self.database.transaction() as connection:
            kept = devices.take(connection, batch)
            for arrived in kept:
                self._progress(connection, arrived)
        for arrived in kept:
            if isinstance(arrived.message, Telemetry):
                self._feed(arrived.device, arrived.message)
            elif isinstance(arrived.message, Info):
                for found in self._live.values():
                    found.join_at = 0.0
        return len(kept)

    def _progress(self, connection: Connection, arrived: Arrived) -> None:
        message, device = arrived.message, arrived.device
        if isinstance(message, UpdateStatus):
            said = members.Progress(
                device, message.rollout, message.attempt, message.state, message.done, message.code, message.message
            )
        elif isinstance(message, Reported):
            if message.refused:
                access.note(connection, device, "desired.refused", device, code=message.refused, reason=message.message)
            if message.state is None:
                return
            said = members.Progress(device, message.rollout, message.attempt, message.state)
        else:
            return
        fresh = members.progress(connection, said)
        # A refusal is noted whoever asked for the update: an attack may be of no roll-out that this registry knows.
        if said.code and (fresh or said.state.final):
            access.note(
                connection,
                device,
                f"update.{said.state.value}",
                said.rollout,
                code=said.code,
                reason=said.message[:500],
            )

    def _feed(self, device: DeviceId, message: Telemetry) -> None:
        window = Window.of(device, message.tried, message.taken, message.token_ms)
        for found in self._live.values():
            found.evidence.observe(window, canary=message.active.sha256 == found.sha256)
            found.dirty = True

    # Roll-outs

    async def tick(self) -> None:
        """One round of every live roll-out."""
        async with self._lock:
            moved = await asyncio.to_thread(self._tick, time.time())
        if moved:
            await self.wake()

    def _tick(self, now: float) -> bool:
        moved = False
        if now >= self._next_sweep:
            with self.database.transaction() as connection:
                removed = devices.forget_old(connection, now - self.config.keep_days * 86400)
            self._next_sweep = now + (0 if removed else _SWEEP_S)
        with self.database.reading() as connection:
            rows = rollouts.live(connection)
        for gone in self._live.keys() - {row.id for row in rows if row.state == RolloutState.RUNNING}:
            del self._live[gone]
        for row in rows:
            try:
                with self.database.transaction() as connection:
                    moved |= self._round(connection, row.id, now)
            except StorageError:
                raise
            except Exception as error:  # noqa: BLE001 - of one roll-out; the others go on
                self._faulty(row.id, error)
            else:
                self._faults.pop(row.id, None)
        return moved

    def _faulty(self, name: str, error: Exception) -> None:
        """Tell it once, where the operator looks."""
        said = f"a fault of the service: {type(error).__name__}: {error}"[:1000]
        if self._faults.get(name) == said:
            return
        self._faults[name] = said
        _log.error("fleet_rollout_faulty", rollout=name, exc_info=error)
        with self.database.transaction() as connection:
            rollouts.change(connection, name, waits_for=said)

    def _round(self, connection: Connection, name: str, now: float) -> bool:
        row = rollouts.load(connection, name)
        evidence = None
        if row.state == RolloutState.RUNNING:
            found = self._live.get(name)
            if found is None:
                found = _Live(Spec.read(row.spec).sha256, rounds.evidence_of(connection, row))
                self._live[name] = found
            if found.dirty:
                rounds.save_evidence(connection, name, found.evidence)
                found.dirty = False
            if now >= found.join_at:
                found.join_at = now + _JOIN_S
                if members.join_late(connection, row):
                    found.evidence = rounds.evidence_of(connection, rollouts.load(connection, name))
            evidence = found.evidence
        decided = decide(now, Spec.read(row.spec), rounds.view(connection, row, now), evidence)
        rounds.carry_out(connection, row, decided, now)
        if decided.state is not None:
            self._live.pop(name, None)  # what is resumed later begins its tests afresh
        return bool(decided.tell or decided.state or decided.stage_state or decided.next_stage)

    # Going out

    async def publish(self, plane: Plane) -> int:
        """Publish pending desired states; returns how many.

        In a new connection all that no device reported, too: a broker that was killed has lost its last minute.
        """
        count = 0
        if plane.births != self._births:
            self._births = plane.births
            async with self._lock:
                await asyncio.to_thread(self._again)
        while True:
            documents = await asyncio.to_thread(self._pending)
            if not documents:
                return count
            told = await asyncio.gather(*map(plane.publish_desired, documents), return_exceptions=True)
            taken = [d for d, error in zip(documents, told, strict=True) if error is None]
            async with self._lock:
                await asyncio.to_thread(self._published, [(d.device, d.version) for d in taken])
            count += len(taken)
            self.counters.published += len(taken)
            for error in told:
                if error is not None:
                    raise error

    def _again(self) -> None:
        with self.database.transaction() as connection:
            desired.publish_again(connection)

    def _pending(self) -> list[Desired]:
        with self.database.reading() as connection:
            return desired.pending(connection, self.config.epoch)

    def _published(self, numbers: list[tuple[str, int]]) -> None:
        with self.database.transaction() as connection:
            for device, version in numbers:
                desired.published(connection, device, version)

    async def deliver(self) -> None:
        """Send what webhooks are owed, signed: `X-Outrider-Signature: sha256=HMAC(secret, body)`."""
        await asyncio.to_thread(self._deliver)

    def _deliver(self) -> None:
        with self.database.reading() as connection:
            owed = webhooks.due(connection)
        for row in owed:
            error = _post(row.url, row.secret, json.dumps(row.body, sort_keys=True).encode())
            with self.database.transaction() as connection:
                if error:
                    webhooks.failed(connection, row.id, row.attempts, error)
                else:
                    webhooks.delivered(connection, row.id)

    async def run(self, plane: Plane) -> None:
        """Tick until cancelled. A fault of one round is logged, and the next begins."""
        self._loop = asyncio.get_running_loop()
        while True:
            self._due.clear()
            try:
                await self.tick()
                await self.publish(plane)
                await self.deliver()
            except UnavailableError:
                _log.info("fleet_broker_away", hint="desired states wait in the registry")
            except OutriderError as error:
                _log.error("fleet_round_failed", code=error.code, reason=error.message)
            except Exception:  # noqa: BLE001 - a defect; what it was about may be over next time
                _log.exception("fleet_round_failed")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self.config.tick_s)

    def kick(self) -> None:
        """Something is to be published: do not wait for the next tick. From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._due.set)

    # For the page

    async def wake(self) -> None:
        """Tell those who watch that something changed."""
        async with self._changed:
            self._changed.notify_all()

    async def changed(self, timeout_s: float) -> None:
        """Wait until something changed, or that long."""
        with contextlib.suppress(TimeoutError):
            async with self._changed:
                await asyncio.wait_for(self._changed.wait(), timeout_s)


def _post(url: str, secret: str, body: bytes) -> str:
    """What went wrong; empty where the receiver took it."""
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {"content-type": "application/json", "x-outrider-signature": f"sha256={signature}"}
    try:
        answer = _http.request("POST", url, body=body, headers=headers, timeout=5.0, retries=False, redirect=False)
    except urllib3.exceptions.HTTPError as error:
        return f"{type(error).__name__}: {error}"
    return "" if 200 <= answer.status < 300 else f"HTTP {answer.status}"
