"""The service's side of MQTT: what devices say comes in checked batches, desired state and commands go out.

    broker --> receive --> parse topic, read message --> presence and sequence rules --> batch --> Sink.arrived --> ack
                                   |
                                   +--> Sink.refused (malformed, or no device's topic)

A message is acknowledged after the sink took its batch, so what a sink committed is never asked for again, and what
it did not commit comes again. The sink must therefore take the same message twice without counting it twice:
`Arrived.new` says what this process knows; across restarts give the last numbers as `known`.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from outrider_shared.errors import DeadlineError, OutriderError, UnavailableError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import decode, encode
from outrider_shared.fleet.desired import Desired, sign
from outrider_shared.fleet.messages import (
    Command,
    CommandResult,
    Info,
    Presence,
    Reported,
    ServiceState,
    Telemetry,
    UpdateStatus,
)
from outrider_shared.fleet.sequence import PresenceRule, SequenceRule
from outrider_shared.fleet.session import FleetSession, Retry
from outrider_shared.fleet.transport import Broker, Connect, Connection, Message, Will
from outrider_shared.ids import SERVICE_PREFIX, DeviceId

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outrider_shared.fleet.signed import Signer

CONTROLLER = f"{SERVICE_PREFIX}controller"
COMMAND_PURPOSE = "command"
DeviceMessage = Presence | Info | Telemetry | Reported | UpdateStatus | CommandResult
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message of one device, checked.

    Attributes:
        retained: The broker had kept it: the state of a device that may have said so long ago.
        new: False for a repeat, and for a late Will of an older connection; state is not to follow it.
        lost: Messages of this stream that this process knows to be lost, up to here.
    """

    device: DeviceId
    message: DeviceMessage
    retained: bool = False
    new: bool = True
    lost: int = 0
    at: float = field(default_factory=time.time)


class Sink(Protocol):
    """Where messages go: the registry. What raises here ends the connection, and the batch comes again."""

    async def arrived(self, batch: list[Arrived]) -> None:
        """Commit these, in order."""

    async def refused(self, topic: str, error: OutriderError) -> None:
        """Note that a message on `topic` was not taken, and why (for the audit log)."""


@dataclass(frozen=True, slots=True)
class PlaneConfig:
    """What an operator can set.

    Attributes:
        tenant: Whose topics.
        epoch: Of the desired states; grows when the registry is restored.
        batch_most, batch_s: A batch is given to the sink when it is that long or that old.
    """

    tenant: str = "main"
    epoch: int = 1
    batch_most: int = 500
    batch_s: float = 0.1


@dataclass(slots=True)
class _Rules:
    """What is known of one device."""

    presence: PresenceRule = field(default_factory=PresenceRule)
    telemetry: SequenceRule = field(default_factory=SequenceRule)
    reported: SequenceRule = field(default_factory=SequenceRule)
    status_seq: int = -1


class Plane:
    """The controller's connection; `run` until cancelled.

    Args:
        broker: Where to connect, as `CONTROLLER`.
        signer: Vouches for desired states and commands.
        sink: Takes what devices say.
        config: Tenant and batches.
        known: Last (bd, seq) of telemetry per device, from the registry.

    Attributes:
        births: How often the broker was reached.
    """

    def __init__(
        self,
        broker: Broker,
        signer: Signer,
        sink: Sink,
        config: PlaneConfig | None = None,
        *,
        known: Mapping[DeviceId, tuple[int, int]] | None = None,
        retry: Retry | None = None,
    ) -> None:
        self.config = config or PlaneConfig()
        self.births = 0
        self._signer, self._sink = signer, sink
        self._rules: dict[DeviceId, _Rules] = {}
        for device, (bd, seq) in (known or {}).items():
            self._rules[device] = _Rules(telemetry=SequenceRule(bd, seq))
        self._batch: list[tuple[Connection, Message, Arrived]] = []
        self._waiting: dict[bytes, asyncio.Future[CommandResult]] = {}
        self._due = asyncio.Event()
        self._session = FleetSession(
            broker,
            self._options,
            topics.ingest_filters(self.config.tenant),
            self._birth,
            self._message,
            on_error=lambda message, error: _log.warning("fleet_refused", topic=message.topic, code=error.code),
            retry=retry,
            own_ack=True,
        )

    async def run(self) -> None:
        """Receive until cancelled; says goodbye then."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._session.run())
            group.create_task(self._flush())
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                await self._goodbye()

    async def connected(self) -> None:
        """Wait until the broker has us."""
        await self._session.connected()

    async def publish_desired(self, document: Desired) -> None:
        """Make this the desired state of its device.

        Raises:
            UnavailableError: if the broker cannot be reached now; the document must be published again.
        """
        topic = topics.DESIRED.of(self.config.tenant, document.device)
        connection = await self._now()
        await connection.publish(topic, sign(self._signer, document), qos=topics.DESIRED.qos, retain=True)

    async def command(self, command: Command, timeout_s: float = 10.0) -> CommandResult:
        """Ask a device to do something at once, and wait for what it says.

        Raises:
            DeadlineError: if no answer came in time; the command expires at the broker and on the device.
            UnavailableError: if the broker cannot be reached.
        """
        correlation = command.id.encode()
        answer = self._waiting[correlation] = asyncio.get_running_loop().create_future()
        tenant, device = self.config.tenant, command.device
        try:
            connection = await self._now()
            await connection.publish(
                topics.COMMAND.of(tenant, device),
                self._signer.sign(COMMAND_PURPOSE, command),
                qos=topics.COMMAND.qos,
                expiry_s=max(1, int(command.expires - command.issued)),
                response_topic=topics.COMMAND_RESULT.of(tenant, device),
                correlation=correlation,
            )
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise DeadlineError(f"{device} did not answer {command.name} within {timeout_s:g} s") from None
        finally:
            del self._waiting[correlation]

    async def forget(self, device: DeviceId) -> None:
        """Remove everything that the broker keeps of a device that left the fleet."""
        connection = await self._now()
        for topic in topics.DEVICE_TOPICS:
            if topic.retain:
                await connection.publish(topic.of(self.config.tenant, device), b"", retain=True)
        self._rules.pop(device, None)

    async def _now(self) -> Connection:
        if self._session.connection is None:
            raise UnavailableError("the fleet service is not connected to its broker")
        return self._session.connection

    def _options(self) -> Connect:
        gone = ServiceState(online=False, epoch=self.config.epoch, ts=time.time())
        will = Will(topics.service_state(self.config.tenant), encode(gone))
        return Connect(CONTROLLER, will, session_s=3600, receive_maximum=2 * self.config.batch_most)

    async def _birth(self, connection: Connection) -> None:
        here = ServiceState(online=True, epoch=self.config.epoch, ts=time.time())
        await connection.publish(topics.service_state(self.config.tenant), encode(here), retain=True)
        self.births += 1

    async def _goodbye(self) -> None:
        gone = ServiceState(online=False, epoch=self.config.epoch, ts=time.time())
        if self._session.connection is not None:
            with contextlib.suppress(OutriderError):
                await self._session.connection.publish(
                    topics.service_state(self.config.tenant), encode(gone), retain=True
                )

    async def _message(self, connection: Connection, message: Message) -> None:
        try:
            arrived = self._judge(message)
        except OutriderError as error:
            await self._sink.refused(message.topic, error)
            connection.ack(message)
            return
        if arrived is None:
            connection.ack(message)
            return
        if isinstance(arrived.message, CommandResult):
            waiting = self._waiting.get(message.correlation or arrived.message.id.encode())
            if waiting is not None and not waiting.done():
                waiting.set_result(arrived.message)
        self._batch.append((connection, message, arrived))
        if len(self._batch) >= self.config.batch_most:
            self._due.set()

    def _judge(self, message: Message) -> Arrived | None:
        """The typed message; None for a retained one that was removed."""
        device, topic = topics.parse(message.topic, self.config.tenant)
        if not message.payload:
            return None
        content: Any = decode(topic.kind, message.payload)
        rules = self._rules.setdefault(device, _Rules())
        new, lost = True, 0
        if isinstance(content, Presence):
            new = rules.presence.judge(content)
        elif isinstance(content, Telemetry):
            new = rules.telemetry.judge(content.bd, content.seq)
            lost = rules.telemetry.lost
        elif isinstance(content, Reported):
            new = rules.reported.judge(content.bd, content.seq)
        elif isinstance(content, UpdateStatus):
            new, rules.status_seq = content.seq > rules.status_seq, max(rules.status_seq, content.seq)
        return Arrived(device, content, message.retained, new, lost)

    async def _flush(self) -> None:
        """Give batches to the sink."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), self.config.batch_s)
            self._due.clear()
            batch, self._batch = self._batch, []
            if batch:
                await self._sink.arrived([arrived for _, _, arrived in batch])
                for connection, message, _ in batch:
                    connection.ack(message)
