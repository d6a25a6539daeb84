"""One simulated device: the same topics, messages, signatures and order of states as a real one, no model."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_shared.errors import OutriderError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import encode
from outrider_shared.fleet.desired import Applied, Assignment, Desired, accept
from outrider_shared.fleet.messages import (
    Command,
    CommandResult,
    Info,
    PackRef,
    Presence,
    Reported,
    Telemetry,
    UpdateState,
    UpdateStatus,
)
from outrider_shared.fleet.session import FleetSession, Retry
from outrider_shared.fleet.transport import Broker, Connect, Connection, Message, Will

if TYPE_CHECKING:
    from outrider_cloud.fleet.simulate.behaviour import Behaviour
    from outrider_shared.fleet.signed import Trust
    from outrider_shared.ids import DeviceId

_GOOD = (
    UpdateState.ASSIGNED, UpdateState.DOWNLOADING, UpdateState.VERIFYING, UpdateState.STAGED, UpdateState.SELF_TEST,
    UpdateState.SWITCHED, UpdateState.PROBATION, UpdateState.COMMITTED,
)  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What all devices did."""

    births: int = 0
    telemetry: int = 0
    lost: int = 0
    desired: int = 0
    updates: int = 0
    failed: int = 0
    refused: int = 0


@dataclass(frozen=True, slots=True)
class Identity:
    """Which device, of which fleet."""

    device: DeviceId
    tenant: str
    tokenizer: str
    trust: Trust
    device_class: str = "int8"


def next_due(since: float, length_s: float, now: float) -> float:
    """When a window ends that was due to begin `since`: lateness does not add up; of what was missed, one counts."""
    return max(since + length_s, now - length_s)


class SimulatedDevice:
    """Runs until cancelled.

    Args:
        who: Its name.
        broker: Connects with its certificate.
        behaviour: How it works.
        tally: Where it counts.
        seed: Of its chances.
        telemetry_s: Window, whatever is desired; None takes what is desired.
    """

    def __init__(
        self, who: Identity, broker: Broker, behaviour: Behaviour, tally: Tally, seed: int, telemetry_s: float | None
    ) -> None:
        self._who, self._behaviour, self._tally = who, behaviour, tally
        self._random = random.Random(seed)  # noqa: S311 - a model, not a secret
        self._telemetry_s = telemetry_s
        self._silent = self._random.random() < behaviour.silent
        self._bd, self._seq, self._reports, self._status = 0, 0, 0, 0
        self._applied, self._desired = Applied(), Desired(who.device, 0, 0, 0.0)
        self._active = PackRef("bundled")
        self._state: UpdateState | None = None
        self._done: Assignment | None = None
        self._wake, self._reconfigured = asyncio.Event(), asyncio.Event()
        mine = (topics.DESIRED.of(who.tenant, who.device), topics.COMMAND.of(who.tenant, who.device))
        retry = Retry(0.5, 10.0, random.Random(seed + 1))  # noqa: S311 - likewise
        self._session = FleetSession(broker, self._options, mine, self._birth, self._message, retry=retry)

    async def run(self) -> None:
        """Take part until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._session.run())
            group.create_task(self._update())
            try:
                await self._work()
            finally:
                await self._goodbye()

    async def _work(self) -> None:
        # Windows begin at random, so that a thousand devices do not speak at once.
        due = await self._due(time.monotonic() + (self._random.random() - 1.0) * self._window_s())
        began = time.monotonic()
        while True:
            due = await self._due(due)
            connection, now = self._session.connection, time.monotonic()
            if connection is None:
                continue
            fields = self._behaviour.window(self._active.target, now - began, self._random)
            message = Telemetry(
                bd=self._bd, seq=self._seq, ts=time.time(), window_s=now - began, active=self._active, **fields
            )
            self._seq, began = self._seq + 1, now
            try:
                await self._say(connection, topics.TELEMETRY, message)
                self._tally.telemetry += 1
            except OutriderError:
                self._tally.lost += 1

    async def _due(self, since: float) -> float:
        """Wait for the end of the window that began then; as soon as another length is desired, a new one begins.

        Returns:
            When it was due, which the next window counts from.
        """
        length_s = self._window_s()
        due = next_due(since, length_s, time.monotonic())
        while (left_s := due - time.monotonic()) > 0:
            self._reconfigured.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._reconfigured.wait(), left_s)
            if length_s != self._window_s():
                length_s = self._window_s()
                due = time.monotonic() + length_s
        return due

    def _window_s(self) -> float:
        return self._telemetry_s or self._desired.config.telemetry_s

    def _options(self) -> Connect:
        self._bd, self._seq, self._reports = self._bd + 1, 0, 0
        gone = Presence(online=False, bd=self._bd, ts=time.time(), reason="lost")
        return Connect(self._who.device, Will(self._topic(topics.PRESENCE), encode(gone)), session_s=3600)

    async def _birth(self, connection: Connection) -> None:
        now = time.time()
        await self._say(connection, topics.PRESENCE, Presence(online=True, bd=self._bd, ts=now))
        info = Info(
            self._bd, now, "simulated", "simulated", self._who.device_class, self._who.tokenizer, self._active, cpus=4
        )
        await self._say(connection, topics.INFO, info)
        await self._report(connection)
        self._tally.births += 1

    async def _goodbye(self) -> None:
        if self._session.connection is not None:
            gone = Presence(online=False, bd=self._bd, ts=time.time(), reason="goodbye")
            try:
                await self._say(self._session.connection, topics.PRESENCE, gone)
            except OutriderError:
                return

    async def _message(self, connection: Connection, message: Message) -> None:
        if message.topic == self._topic(topics.COMMAND):
            command = self._who.trust.open("command", Command, message.payload)
            answer = encode(CommandResult(command.id, time.time()))
            await connection.publish(self._topic(topics.COMMAND_RESULT), answer, correlation=message.correlation)
            return
        if not message.payload:
            return
        try:
            found = accept(self._who.trust, self._who.device, self._applied, message.payload)
        except OutriderError:
            self._tally.refused += 1
            return
        if found is not None:
            self._desired, self._applied = found
            self._tally.desired += 1
            await self._report(connection)
            self._wake.set()
            self._reconfigured.set()

    async def _report(self, connection: Connection) -> None:
        assignment = self._done
        reported = Reported(
            self._bd, self._reports, time.time(), self._applied.epoch, self._applied.version, self._active,
            rollout=assignment.rollout if assignment else "", attempt=assignment.attempt if assignment else 0,
            state=self._state,
        )  # fmt: skip
        self._reports += 1
        await self._say(connection, topics.REPORTED, reported)

    async def _update(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            wanted = self._desired.assignment
            if wanted is None or wanted == self._done:
                continue
            self._done = wanted
            if self._silent:
                continue
            await self._steps(wanted)

    async def _steps(self, wanted: Assignment) -> None:
        """Go through the states; a newer assignment ends it."""
        fails = self._random.random() < self._behaviour.draft(wanted.target).failing
        for state in _GOOD:
            if self._desired.assignment != wanted:
                await self._tell(wanted, UpdateState.SUPERSEDED, "")
                return
            if fails and state is UpdateState.SWITCHED:
                self._tally.failed += 1
                await self._tell(wanted, UpdateState.FAILED, "self_test")
                return
            if state is UpdateState.SWITCHED:
                self._active = PackRef(wanted.target, wanted.sha256)
            await self._tell(wanted, state, "")
            await asyncio.sleep(self._random.expovariate(1 / self._behaviour.step_s))
        self._tally.updates += 1

    async def _tell(self, wanted: Assignment, state: UpdateState, code: str) -> None:
        self._state, self._status = state, self._status + 1
        status = UpdateStatus(
            wanted.rollout, wanted.attempt, wanted.target, state, self._status, time.time(), 1.0, code
        )
        while True:
            connection = await self._session.connected()
            try:
                await self._say(connection, topics.UPDATE_STATUS, status)
                if state.final:
                    await self._report(connection)
            except OutriderError:
                await asyncio.sleep(0.2)
                continue
            return

    def _topic(self, topic: topics.Topic) -> str:
        return topic.of(self._who.tenant, self._who.device)

    async def _say(self, connection: Connection, topic: topics.Topic, message: object) -> None:
        await connection.publish(self._topic(topic), encode(message), qos=topic.qos, retain=topic.retain)
