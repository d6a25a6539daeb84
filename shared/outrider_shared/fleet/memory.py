"""A broker in this process, with the semantics of `transport`: whole-fleet tests run on it without a socket."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from outrider_shared.errors import RefusedError, UnavailableError
from outrider_shared.fleet.topics import device_may_publish, device_may_read, matches
from outrider_shared.fleet.transport import Connect, Message, Will
from outrider_shared.ids import SERVICE_PREFIX

Rule = Callable[[str, str], bool]  # (topic, client id) -> allowed


@dataclass(slots=True)
class _Session:
    """What the broker knows of one client: who owns it is the client id, it ends with its connection or `session_s`."""

    filters: dict[str, int] = field(default_factory=dict)
    queue: deque[Message] = field(default_factory=deque)  # not yet received
    pending: dict[int, Message] = field(default_factory=dict)  # received, not acknowledged
    connection: MemoryConnection | None = None
    keep: bool = False


class MemoryBroker:
    """Retained messages, Wills, sessions and access rules. Time is the event loop's.

    Args:
        may_publish, may_read: Access rules; None allows everything.
        queue_most: Messages kept for an absent session; the newest is dropped beyond.
    """

    def __init__(self, may_publish: Rule | None = None, may_read: Rule | None = None, queue_most: int = 1000) -> None:
        self._may_publish = may_publish or (lambda _topic, _client: True)
        self._may_read = may_read or (lambda _topic, _client: True)
        self._queue_most = queue_most
        self._sessions: dict[str, _Session] = {}
        self._wills: dict[str, asyncio.TimerHandle] = {}
        self._numbers = itertools.count(1)
        self.retained: dict[str, Message] = {}
        self.reachable = True

    @classmethod
    def for_tenant(cls, tenant: str) -> MemoryBroker:
        """With the access rules of `topics`: devices reach their own topics, services all."""

        def publish(topic: str, client: str) -> bool:
            return client.startswith(SERVICE_PREFIX) or device_may_publish(topic, tenant, client)

        def read(topic: str, client: str) -> bool:
            return client.startswith(SERVICE_PREFIX) or device_may_read(topic, tenant, client)

        return cls(publish, read)

    async def connect(self, options: Connect) -> MemoryConnection:
        """See `Broker`."""
        await asyncio.sleep(0)
        if not self.reachable:
            raise UnavailableError("the broker is down")
        if (timer := self._wills.pop(options.client_id, None)) is not None:
            timer.cancel()
        session = self._sessions.get(options.client_id)
        if session is not None and session.connection is not None:
            session.connection.end(send_will=False)
        if session is None or not session.keep or not options.session_s:
            session = self._sessions[options.client_id] = _Session(keep=bool(options.session_s))
        connection = session.connection = MemoryConnection(self, session, options)
        session.queue.extendleft(reversed(session.pending.values()))
        session.pending.clear()
        return connection

    def stop(self) -> None:
        """Die as a killed broker does: connections break, sessions and retained messages survive (they are on disk)."""
        self.reachable = False
        for session in list(self._sessions.values()):
            if session.connection is not None:
                session.connection.end(send_will=False)

    def start(self) -> None:
        """Be reachable again."""
        self.reachable = True

    def take(self, client: str, message: Message, *, retain: bool) -> None:
        """Keep and deliver one message.

        Raises:
            RefusedError: if the client may not publish there.
        """
        if not self._may_publish(message.topic, client):
            raise RefusedError(f"{client!r} may not publish on {message.topic!r}")
        if retain and message.payload:
            self.retained[message.topic] = replace(message, retained=True)
        elif retain:
            self.retained.pop(message.topic, None)
        for name, session in self._sessions.items():
            if any(matches(pattern, message.topic) for pattern in session.filters):
                self._deliver(name, session, message)

    def subscribe(self, client: str, session: _Session, pattern: str, qos: int) -> None:
        """Add a filter, and deliver what is retained for it."""
        session.filters[pattern] = qos
        for message in list(self.retained.values()):
            if matches(pattern, message.topic):
                self._deliver(client, session, message)

    def end(self, client: str, session: _Session, will: Will | None) -> None:
        """A connection ended; its Will, if any, is due."""
        session.connection = None
        if not session.keep:
            self._sessions.pop(client, None)
        if will is None:
            return
        loop = asyncio.get_running_loop()
        self._wills[client] = loop.call_later(will.delay_s, self._publish_will, client, will)

    def _publish_will(self, client: str, will: Will) -> None:
        self._wills.pop(client, None)
        self.take(client, Message(will.topic, will.payload, will.qos), retain=will.retain)

    def _deliver(self, client: str, session: _Session, message: Message) -> None:
        if not self._may_read(message.topic, client):
            return
        if session.connection is None and len(session.queue) >= self._queue_most:
            return
        session.queue.append(replace(message, handle=next(self._numbers)))
        if session.connection is not None:
            session.connection.wake.set()


class MemoryConnection:
    """One connection; see `Connection`."""

    def __init__(self, broker: MemoryBroker, session: _Session, options: Connect) -> None:
        self._broker, self._session, self._options = broker, session, options
        self._open = True
        self.wake = asyncio.Event()
        self.wake.set()

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None,  # noqa: ARG002
        response_topic: str | None = None, correlation: bytes | None = None,
    ) -> None:  # fmt: skip
        """See `Connection`."""
        await asyncio.sleep(0)
        self._check()
        message = Message(topic, payload, qos, response_topic=response_topic, correlation=correlation)
        self._broker.take(self._options.client_id, message, retain=retain)

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        """See `Connection`."""
        await asyncio.sleep(0)
        self._check()
        for pattern in filters:
            self._broker.subscribe(self._options.client_id, self._session, pattern, qos)

    async def receive(self) -> Message:
        """See `Connection`."""
        while True:
            self._check()
            room = len(self._session.pending) < self._options.receive_maximum
            if self._session.queue and room:
                message = self._session.queue.popleft()
                if message.qos:
                    self._session.pending[message.handle] = message
                return message
            self.wake.clear()
            await self.wake.wait()

    def ack(self, message: Message) -> None:
        """See `Connection`."""
        self._session.pending.pop(message.handle, None)
        self.wake.set()

    async def close(self) -> None:
        """See `Connection`."""
        self.end(send_will=False)

    def drop(self) -> None:
        """See `Connection`."""
        self.end(send_will=True)

    def end(self, *, send_will: bool) -> None:
        """Whoever ended it: nothing more goes in or out."""
        if self._open:
            self._open = False
            self._broker.end(self._options.client_id, self._session, self._options.will if send_will else None)
            self.wake.set()

    def _check(self) -> None:
        if not self._open:
            raise UnavailableError("the connection to the broker is gone")
