"""MQTT 5 over mutual TLS: `aiomqtt` behind `transport`.

Three things that aiomqtt 2.5 does not do itself are added here, and nothing else reaches into it:

- a PUBACK with a reason code of 0x80 or more is an error (aiomqtt drops the code, so a refused publish looks like a
  good one);
- a received message is acknowledged when it was dealt with, not when it came (paho's manual acknowledgement);
- messages are taken from the queue directly (its iterator makes a task for each).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import aiomqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from outrider_shared.errors import ConfigError, OutriderError, RefusedError, UnavailableError
from outrider_shared.fleet.transport import Connect, Message, Will

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from paho.mqtt.client import Client as PahoClient
    from paho.mqtt.reasoncodes import ReasonCode

T = TypeVar("T")
_REFUSALS = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})  # identity and authorisation, of a CONNACK


class _Socket(ssl.SSLSocket):
    """Closes itself where the handshake fails: paho has not taken it over then, and nobody else would."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except (OSError, ValueError):
            self.close()
            raise


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """Where the broker is, and who we are.

    Attributes:
        host, port: Of the broker.
        ca: PEM of who signs the broker's certificate; None is plaintext, for a broker on this machine only.
        certificate, key: PEM of this client; its CN becomes the client id.
        timeout_s: For the connection and for each acknowledgement.
    """

    host: str
    port: int = 8883
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    timeout_s: float = 20.0

    def tls(self) -> ssl.SSLContext | None:
        """The files as Python's `ssl` wants them.

        Raises:
            ConfigError: if a file is missing or is no PEM.
        """
        if self.ca is None:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(self.ca))
            context.sslsocket_class = _Socket
            if self.certificate is not None:
                context.load_cert_chain(str(self.certificate), None if self.key is None else str(self.key))
        except (OSError, ssl.SSLError) as error:
            files = [str(path) for path in (self.ca, self.certificate, self.key)]
            raise ConfigError(f"TLS files {files} cannot be used: {error}") from error
        return context


class MqttBroker:
    """Opens connections; the TLS context is made once."""

    def __init__(self, config: MqttConfig) -> None:
        self._config = config
        self._tls = config.tls()

    async def connect(self, options: Connect) -> MqttConnection:
        """See `Broker`."""
        queue: asyncio.Queue[aiomqtt.Message | None] = asyncio.Queue()
        client = _Client(
            self._config.host,
            self._config.port,
            identifier=options.client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            queue_type=lambda maxsize: queue,  # noqa: ARG005 - aiomqtt calls it with maxsize
            will=_will(options.will),
            clean_start=not options.session_s,
            properties=_properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=options.session_s,
                ReceiveMaximum=options.receive_maximum,
            ),
            keepalive=options.keepalive_s,
            timeout=self._config.timeout_s,
            tls_context=self._tls,
            max_queued_outgoing_messages=0,
        )
        client.pending_calls_threshold = 1 << 20
        client.paho.manual_ack_set(True)
        entering = asyncio.ensure_future(client.__aenter__())
        try:
            await _typed(asyncio.shield(entering), f"{self._config.host}:{self._config.port}")
        except OutriderError:
            # A handshake that the broker answered with an alert leaves the socket open, and so may a refusal.
            client.cut()
            raise
        except asyncio.CancelledError:
            # The thread that opens the socket cannot be stopped: what it opens is closed here.
            await asyncio.wait((entering,))
            if not entering.cancelled():
                entering.exception()  # asked for, so that asyncio does not complain that nobody did
            client.cut()
            raise
        return MqttConnection(client, queue, options)


class MqttConnection:
    """One connection; see `Connection`."""

    def __init__(self, client: _Client, queue: asyncio.Queue[aiomqtt.Message | None], options: Connect) -> None:
        self._client, self._queue, self._options = client, queue, options
        client.broken.add_done_callback(self._broken)

    async def publish(
        self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int | None = None,
        response_topic: str | None = None, correlation: bytes | None = None,
    ) -> None:  # fmt: skip
        """See `Connection`."""
        self._check()
        properties = _properties(
            PacketTypes.PUBLISH,
            MessageExpiryInterval=expiry_s,
            ResponseTopic=response_topic,
            CorrelationData=correlation,
        )
        code = await _typed(self._client.publish_checked(topic, payload, qos, retain, properties), topic)
        if code >= 0x80:
            raise RefusedError(
                f"{self._options.client_id!r} may not publish on {topic!r} (reason code {code:#x})",
                hint="a device may write its own topics only",
            )

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        """See `Connection`."""
        self._check()
        await _typed(self._client.subscribe([(pattern, qos) for pattern in filters], qos=qos), ", ".join(filters))

    async def receive(self) -> Message:
        """See `Connection`."""
        found = await self._queue.get()
        if found is None:
            self._queue.put_nowait(None)
            raise UnavailableError("the connection to the broker is gone")
        payload = found.payload if isinstance(found.payload, bytes) else b""
        properties = found.properties
        return Message(
            str(found.topic),
            payload,
            found.qos,
            found.retain,
            getattr(properties, "ResponseTopic", None),
            getattr(properties, "CorrelationData", None),
            found.mid,
        )

    def ack(self, message: Message) -> None:
        """See `Connection`. After a break the message comes again, so there is nothing to tell."""
        if message.qos and not self._client.broken.done():
            self._client.paho.ack(message.handle, message.qos)

    async def close(self) -> None:
        """See `Connection`."""
        with contextlib.suppress(aiomqtt.MqttError, OSError, ValueError):
            await self._client.__aexit__(None, None, None)
        self._client.cut()

    def drop(self) -> None:
        """See `Connection`."""
        self._client.cut()

    def _broken(self, broken: asyncio.Future[None]) -> None:
        if not broken.cancelled():
            broken.exception()  # asked for, so that asyncio does not complain that nobody did
        self._queue.put_nowait(None)

    def _check(self) -> None:
        if self._client.broken.done():
            raise UnavailableError("the connection to the broker is gone")


class _Client(aiomqtt.Client):
    """The additions; they rest on names of aiomqtt 2.5 that `tests/integration/test_mqtt.py` holds."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._codes: dict[int, int] = {}

    @property
    def paho(self) -> PahoClient:
        """The client below."""
        return self._client

    @property
    def broken(self) -> asyncio.Future[None]:
        """Done when the connection is gone."""
        return self._disconnected

    def cut(self) -> None:
        """Close the socket without a word."""
        if (sock := self._client.socket()) is not None:
            self._on_socket_close(self._client, None, sock)
            with contextlib.suppress(KeyError, ValueError, RuntimeError):
                self._loop.remove_writer(sock.fileno())
            sock.close()
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    def _on_disconnect(self, client: PahoClient, userdata: Any, *rest: Any) -> None:
        if not self._connected.done():
            # aiomqtt would wait for its timeout.
            self._connected.set_exception(aiomqtt.MqttError("closed before it was accepted"))
        super()._on_disconnect(client, userdata, *rest)

    def _on_publish(
        self, client: PahoClient, userdata: Any, mid: int, reason_code: ReasonCode, properties: Properties
    ) -> None:
        if mid in self._pending_publishes and reason_code.value >= 0x80:
            self._codes[mid] = reason_code.value
        super()._on_publish(client, userdata, mid, reason_code, properties)

    async def publish_checked(
        self, topic: str, payload: bytes, qos: int, retain: bool, properties: Properties | None
    ) -> int:
        """As `publish`; returns the reason code of the acknowledgement (0 for QoS 0)."""
        info = self._client.publish(topic, payload, qos, retain, properties)
        if info.rc:
            raise aiomqtt.MqttCodeError(info.rc, "Could not publish message")
        if qos == 0 or info.is_published():
            return 0
        # No await lies between `publish` and here, so the acknowledgement cannot have been handled yet.
        confirmed = asyncio.Event()
        with self._pending_call(info.mid, confirmed, self._pending_publishes):
            await self._confirmed(confirmed)
        return self._codes.pop(info.mid, 0)

    async def _confirmed(self, confirmed: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(confirmed.wait())
        try:
            done, _ = await asyncio.wait(
                (waiting, self._disconnected), timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        if waiting not in done:
            raise aiomqtt.MqttError("the broker did not acknowledge the message")


async def _typed(call: Awaitable[T], what: str) -> T:
    """Await a call of aiomqtt; its errors become ours."""
    try:
        return await call
    except aiomqtt.MqttError as error:
        code = getattr(getattr(error, "rc", None), "value", None)
        raise _refusal(code, what) or UnavailableError(f"the broker failed at {what}: {error}") from error
    except (OSError, ValueError) as error:
        raise UnavailableError(f"the broker failed at {what}: {error}") from error


def _refusal(code: int | None, what: str) -> OutriderError | None:
    return RefusedError(f"the broker does not take this client at {what} ({code:#x})") if code in _REFUSALS else None


def _will(will: Will | None) -> aiomqtt.Will | None:
    if will is None:
        return None
    properties = _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=will.delay_s or None)
    return aiomqtt.Will(will.topic, will.payload, will.qos, will.retain, properties)


def _properties(packet: int, **values: Any) -> Properties | None:
    given = {name: value for name, value in values.items() if value is not None}
    if not given:
        return None
    properties = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in given.items():
        setattr(properties, name, value)
    return properties
