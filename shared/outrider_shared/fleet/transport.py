"""What the fleet plane needs of MQTT. `memory` is a twin in this process, `mqtt` the real one.

Both behave alike:

- a retained message is kept by topic and comes with each new subscription; an empty payload removes it;
- a Will is published when a connection ends without `close`, unless the client is back within its delay;
- QoS 1: `publish` returns when the broker took the message, and raises `RefusedError` when it does not allow it;
  a received message that was not `ack`ed before the connection ended comes again in the next one of the same session;
- a forbidden subscription is granted and delivers nothing (so does Mosquitto);
- a second connection with the same client id ends the first;
- a queue for an absent session is bounded and drops the newest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it came.

    Attributes:
        retained: It was kept by the broker: what it tells may be long ago.
        handle: What `ack` needs.
    """

    topic: str
    payload: bytes
    qos: int = 1
    retained: bool = False
    response_topic: str | None = None
    correlation: bytes | None = None
    handle: int = 0


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says for a client that is gone."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True
    delay_s: int = 0


@dataclass(frozen=True, slots=True)
class Connect:
    """How to connect.

    Attributes:
        client_id: The certificate's CN; the broker takes that one whatever is said here.
        session_s: How long the broker keeps the session of an absent client; 0 starts afresh each time.
        keepalive_s: Silence after which the broker counts the client as gone (times 1.5).
        receive_maximum: Messages that may be received and not yet acknowledged.
    """

    client_id: str
    will: Will | None = None
    session_s: int = 0
    keepalive_s: int = 30
    receive_maximum: int = 1000


class Connection(Protocol):
    """One connection. Every method but `close` and `drop` raises `UnavailableError` when it is broken."""

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None,
        response_topic: str | None = None, correlation: bytes | None = None,
    ) -> None:  # fmt: skip
        """Publish; with QoS 1 returns when the broker has the message.

        Raises:
            RefusedError: if the broker does not allow it.
        """

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Ask for the messages of these filters."""

    async def receive(self) -> Message:
        """The next message."""

    def ack(self, message: Message) -> None:
        """Say that a message is done with: it will not come again."""

    async def close(self) -> None:
        """Leave politely: no Will is sent. Never raises."""

    def drop(self) -> None:
        """Cut the connection as a crash would: the Will is sent."""


class Broker(Protocol):
    """A way to a broker."""

    async def connect(self, options: Connect) -> Connection:
        """A fresh connection.

        Raises:
            UnavailableError: if the broker cannot be reached.
            RefusedError: if it does not take this client.
        """
