"""The agent: presence, telemetry, what is desired, commands, and updates, beside a program that answers requests.

    broker -- desired --> accept (signed, for us, newer) --> config, assignment --> updater --> host.swap
           -- cmd/req --> signed, not expired, once      --> one of a closed set --> cmd/res
           <- presence, info, reported, tele: published when due; update/status: from the outbox, until the broker has
           it

It runs in the host's event loop and yields: whatever takes long (files, hashes, downloads, self-tests) is in threads,
and a fault of the agent ends the agent and not the host.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import os
import platform
import time
from typing import TYPE_CHECKING, Any

import structlog

from outrider_edge.agent import system
from outrider_edge.agent.commands import Commands
from outrider_edge.agent.disk import finished
from outrider_edge.agent.kept import Kept
from outrider_edge.agent.outbox import Outbox
from outrider_edge.agent.update.updater import Updater
from outrider_shared.errors import OutriderError, StorageError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import encode
from outrider_shared.fleet.desired import Config, accept
from outrider_shared.fleet.messages import (
    Command,
    CommandName,
    Info,
    Presence,
    Reported,
    Telemetry,
    UpdateStatus,
)
from outrider_shared.fleet.session import FleetSession
from outrider_shared.fleet.transport import Broker, Connect, Connection, Message, Will
from outrider_shared.version import version

if TYPE_CHECKING:
    from outrider_edge.agent.config import AgentConfig
    from outrider_edge.agent.disk import Disk
    from outrider_edge.agent.host import Host
    from outrider_edge.agent.update.journal import Record
    from outrider_edge.agent.update.slots import Slots
    from outrider_edge.agent.update.updater import Means
    from outrider_edge.agent.update.work import Doer

_log = structlog.get_logger()
_SESSION_S = 3600  # how long the broker keeps commands for us; desired state is retained anyway
_WILL_DELAY_S = 5
_FLUSH_S = 30.0


class Agent:
    """One device's agent; `boot` once before the draft is loaded, then `run`.

    Args:
        config: Who this is.
        broker: How to reach the fleet.
        host: The program that answers.
        slots: Packs on this device.
        doer: Does the heavy parts of updates.
        tokenizer: Fingerprint that drafts must have.
        disk: File system.
        means: Clocks of updates.
    """

    def __init__(
        self,
        config: AgentConfig,
        broker: Broker,
        host: Host,
        slots: Slots,
        doer: Doer,
        tokenizer: str,
        disk: Disk,
        means: Means | None = None,
    ) -> None:
        self._config, self._host, self._disk, self._tokenizer = config, host, disk, tokenizer
        disk.mkdir(config.state)
        self._outbox = Outbox(disk, config.state / "outbox")
        self._file = config.state / "agent.json"
        self._kept = Kept.read(disk.read(self._file))
        self._seq = {topics.TELEMETRY: 0, topics.REPORTED: 0}
        self._refusal: OutriderError | None = None
        self._commands = Commands(config)
        self._window_began = time.monotonic()
        self._wake_outbox, self._wake_telemetry, self._wake_update = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.updater = Updater(config.state, doer, host, slots, disk, self._tell, means)
        self.updater.config = self._kept.desired.config if self._kept.desired else Config()
        self._session = FleetSession(
            broker,
            self._options,
            (topics.DESIRED.of(config.tenant, config.device), topics.COMMAND.of(config.tenant, config.device)),
            self._birth,
            self._message,
            on_error=lambda message, error: _log.warning("fleet_message_refused", topic=message.topic, code=error.code),
            retry=means.reconnect if means else None,
        )

    @property
    def config(self) -> Config:
        """As desired last."""
        return self.updater.config

    async def run(self) -> None:
        """Take part until cancelled; says goodbye then."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                for part in (self._session.run(), self._send_outbox(), self._send_telemetry(), self._update()):
                    group.create_task(part)
                try:
                    await self._loop.create_future()
                finally:
                    await self._goodbye()
        except* OutriderError as errors:
            # The host lives on without the fleet.
            for error in errors.exceptions:
                _log.error("fleet_agent_ended", reason=str(error))
            raise

    # Presence

    def _options(self) -> Connect:
        self._kept.bd += 1
        self._seq = dict.fromkeys(self._seq, 0)
        self._keep()
        gone = Presence(online=False, bd=self._kept.bd, ts=time.time(), reason="lost")
        will = Will(self._topic(topics.PRESENCE), encode(gone), delay_s=_WILL_DELAY_S)
        return Connect(self._config.device, will, session_s=_SESSION_S)

    async def _birth(self, connection: Connection) -> None:
        now = time.time()
        await self._say(connection, topics.PRESENCE, Presence(online=True, bd=self._kept.bd, ts=now))
        await self._say(connection, topics.INFO, self._info(now))
        await self._report(connection)
        self._wake_outbox.set()

    async def _goodbye(self) -> None:
        if self._session.connection is not None:
            gone = Presence(online=False, bd=self._kept.bd, ts=time.time(), reason="goodbye")
            with contextlib.suppress(OutriderError):
                await self._say(self._session.connection, topics.PRESENCE, gone)

    def _info(self, now: float) -> Info:
        return Info(
            bd=self._kept.bd,
            ts=now,
            agent=version(),
            system=platform.platform(),
            device_class=self._config.device_class,
            tokenizer=self._tokenizer,
            active=self._active(),
            cpus=_cpus(),
            memory_bytes=system.memory_bytes(),
            labels={**self._config.labels, **(self._kept.desired.labels if self._kept.desired else {})},
        )

    # Desired and reported

    async def _message(self, connection: Connection, message: Message) -> None:
        if message.topic == self._topic(topics.COMMAND):
            await self._command(connection, message)
        elif message.topic == self._topic(topics.DESIRED) and message.payload:
            await self._converge(connection, message.payload)

    async def _converge(self, connection: Connection, payload: bytes) -> None:
        try:
            found = accept(self._config.trust, self._config.device, self._kept.applied, payload)
        except OutriderError as error:
            _log.warning("fleet_desired_refused", code=error.code, reason=error.message)
            self._refusal = error
            await self._report(connection)
            return
        if found is not None:
            window_s = self.config.telemetry_s
            self._kept.desired, self._kept.applied = found
            if self.config.telemetry_s != window_s:
                self._wake_telemetry.set()  # not after a window of the old length, which may be a day
            await finished(self._keep)
            self.updater.config = self._kept.desired.config
            self._wake_update.set()
        if found is not None or self._refusal is not None:
            self._refusal = None
            await self._report(connection)

    async def _report(self, connection: Connection) -> None:
        record, refusal, slots = self.updater.record, self._refusal, self.updater.slots
        labels = {name: slots.label(name) for name in ("a", "b")}
        reported = Reported(
            bd=self._kept.bd,
            seq=self._next(topics.REPORTED),
            ts=time.time(),
            epoch=self._kept.applied.epoch,
            version=self._kept.applied.version,
            active=self._active(),
            config=_flat(self.config),
            rollout=record.rollout,
            attempt=record.attempt,
            state=record.state if record.rollout else None,
            refused=refusal.code if refusal else "",
            message=refusal.message[:1000] if refusal else record.message[:1000],
            slots={name: label.sha256 for name, label in labels.items() if label is not None},
        )
        await self._say(connection, topics.REPORTED, reported)

    async def _update(self) -> None:
        """Bring the draft to what is desired; a newer assignment ends an older one."""
        while True:
            self._wake_update.clear()
            wanted = self._kept.desired.assignment if self._kept.desired else None
            try:
                if wanted is None:
                    await self.updater.cancel()
                elif await self.updater.assign(wanted):
                    await self._until_woken(self.updater.run())
            except StorageError as error:
                _log.error("fleet_update_stopped", reason=error.message)
                await asyncio.sleep(_FLUSH_S)
                continue
            await self._wake_update.wait()

    async def _until_woken(self, work: Any) -> None:
        """Run until it is done, or until there is something else to do."""
        running, woken = asyncio.ensure_future(work), asyncio.ensure_future(self._wake_update.wait())
        try:
            await asyncio.wait((running, woken), return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            if not running.done():
                running.cancel()
                await asyncio.wait((running,))
        if not running.cancelled():
            await running
        if self._session.connection is not None:
            await self._report(self._session.connection)

    # Telemetry

    async def _send_telemetry(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_telemetry.wait(), self.config.telemetry_s)
            self._wake_telemetry.clear()
            connection = self._session.connection
            if connection is None:
                continue  # the window goes on: what was done offline is told when there is somebody to tell
            now = time.monotonic()
            window_s, self._window_began = now - self._window_began, now
            message = Telemetry(
                bd=self._kept.bd,
                seq=self._next(topics.TELEMETRY),
                ts=time.time(),
                window_s=window_s,
                active=self._active(),
                **self._host.usage.read(),
                dropped=self._outbox.dropped,
                temperature_c=system.temperature_c(),
                memory_bytes=system.resident_bytes(),
            )
            # One that is lost is counted by its number; it is not sent again.
            with contextlib.suppress(OutriderError):
                await self._say(connection, topics.TELEMETRY, message)

    # Status of updates

    def _tell(self, record: Record, done: float) -> None:
        """Called by the updater, from any thread, after the record is on disk."""
        if not record.rollout:
            return
        status = UpdateStatus(
            record.rollout, record.attempt, record.target, record.state, record.number, time.time(), done,
            record.code, record.message,
        )  # fmt: skip
        self._outbox.put(record.number, encode(status))
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake_outbox.set)

    async def _send_outbox(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake_outbox.wait(), _FLUSH_S)
            self._wake_outbox.clear()
            connection = self._session.connection or await self._session.connected()
            with contextlib.suppress(OutriderError):
                for number in self._outbox.waiting():
                    if (payload := self._outbox.get(number)) is not None:
                        await connection.publish(self._topic(topics.UPDATE_STATUS), payload)
                    # Written again meanwhile (progress of a download): what is newer is kept.
                    if self._outbox.get(number) == payload:
                        self._outbox.done(number)
                    else:
                        self._wake_outbox.set()

    # Commands

    async def _command(self, connection: Connection, message: Message) -> None:
        result = await self._commands.result(message, functools.partial(self._do, connection))
        topic = self._topic(topics.COMMAND_RESULT)
        await connection.publish(topic, encode(result), correlation=message.correlation)

    async def _do(self, connection: Connection, command: Command) -> dict[str, Any]:
        if command.name is CommandName.RESTART_DRAFT:
            await self._host.restart_draft()
        elif command.name is CommandName.COLLECT_LOGS:
            asked = command.args.get("lines")
            lines = min(asked if isinstance(asked, int) and asked > 0 else 1000, self.config.log_lines)
            return {"log": "\n".join(line[:500] for line in self._host.logs(lines))[-60_000:]}
        elif command.name is CommandName.REPORT:
            await self._birth(connection)
        elif command.name is CommandName.FLUSH:
            self._wake_telemetry.set()
        return {}

    # Small things

    def boot(self) -> None:
        """Decide which pack to start with; its folder is `updater.slots.folder(updater.slots.current())` afterwards."""
        try:
            self.updater.boot()
        except StorageError as error:
            _log.error("fleet_boot", reason=error.message)

    def _topic(self, topic: topics.Topic) -> str:
        return topic.of(self._config.tenant, self._config.device)

    async def _say(self, connection: Connection, topic: topics.Topic, message: object) -> None:
        await connection.publish(self._topic(topic), encode(message), qos=topic.qos, retain=topic.retain)

    def _next(self, topic: topics.Topic) -> int:
        number = self._seq[topic]
        self._seq[topic] = number + 1
        return number

    def _active(self) -> Any:
        return self.updater.slots.reference(self.updater.slots.current())

    def _keep(self) -> None:
        self._disk.replace(self._file, self._kept.to_json())


def _flat(config: Config) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    window = fields.pop("window")
    return {**fields, "window_start_s": window["start_s"], "window_end_s": window["end_s"]}


def _cpus() -> int:
    return os.cpu_count() or 0
