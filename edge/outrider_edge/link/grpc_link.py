"""The gRPC transport: one channel per cloud, one stream per session."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import grpc

from outrider_shared import wire
from outrider_shared.addresses import split_address
from outrider_shared.errors import (
    ConfigError,
    DeadlineError,
    InternalError,
    LimitError,
    OutriderError,
    ProtocolError,
    UnavailableError,
)
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

_KINDS: dict[grpc.StatusCode, type[OutriderError]] = {
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: LimitError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    # The other side, or a proxy in between, cut the stream without an error of its own: it may be resumed.
    grpc.StatusCode.CANCELLED: UnavailableError,
    grpc.StatusCode.UNKNOWN: UnavailableError,
    grpc.StatusCode.INTERNAL: UnavailableError,
    grpc.StatusCode.ABORTED: UnavailableError,
}
_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # Our own backoff decides when to try again; gRPC's would make a stream wait for up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # Each channel its own connection: what one session's network does is no other's trouble.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files of a device.

    Attributes:
        ca: Who signs the cloud's certificate; None takes the system's roots.
        certificate, key: The device's own, for mTLS.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a client certificate needs its key, and a key its certificate")

    def credentials(self) -> grpc.ChannelCredentials:
        """GRPC's form of the files.

        Raises:
            ConfigError: if a file cannot be read.
        """

        def read(path: Path | None) -> bytes | None:
            return None if path is None else path.read_bytes()

        try:
            return grpc.ssl_channel_credentials(read(self.ca), read(self.key), read(self.certificate))
        except OSError as error:
            raise ConfigError(f"TLS file {error.filename} cannot be read: {error.strerror}") from error


class _Channel:
    """One HTTP/2 connection, and how many streams use it. Belongs to the event loop that runs when it is made."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        if credentials is None:
            self.channel: Any = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
        self.decode = self.channel.stream_stream(
            f"/{wire.SERVICE}/Decode",
            request_serializer=pb.DecodeRequest.SerializeToString,
            response_deserializer=pb.DecodeResponse.FromString,
        )
        self.describe = self.channel.unary_unary(
            f"/{wire.SERVICE}/Describe",
            request_serializer=pb.DescribeRequest.SerializeToString,
            response_deserializer=pb.DescribeResponse.FromString,
        )
        self.links = 0
        self.opened = 0


class GrpcConnector:
    """A channel to one cloud; use as an async context manager.

    Args:
        target: HOST:PORT.
        tls: None is plaintext.
        connect_timeout_s: How long to wait for the cloud to be reachable.
        deadline_s: Bound on each stream; None is unbounded.

    Raises:
        ConfigError: if the target is no HOST:PORT, or a TLS file cannot be read.
    """

    def __init__(
        self,
        target: str,
        tls: ClientTls | None = None,
        *,
        connect_timeout_s: float = 5.0,
        deadline_s: float | None = None,
    ) -> None:
        split_address(target)
        self._target = target
        self._credentials = None if tls is None else tls.credentials()
        self._timeout_s = connect_timeout_s
        self._deadline_s = deadline_s
        self._channel: _Channel | None = None
        # Connections that a stream broke on, and which others still use.
        self._left: list[_Channel] = []

    async def __aenter__(self) -> Self:
        self._channel = _Channel(self._target, self._credentials)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        channels, self._channel, self._left = [*self._left, self._open], None, []
        for channel in channels:
            await channel.channel.close()

    @property
    def _open(self) -> _Channel:
        assert self._channel is not None, "a connector is entered before it is used"
        return self._channel

    @property
    def where(self) -> str:
        """See `Connector`."""
        return self._target

    def note(self, peer: str, *, alive: bool) -> None:
        """After a stream that broke, the next one gets a connection of its own; see `Connector`.

        A connection that is half open looks ready for minutes. Whoever else still uses the old one keeps it.
        """
        if alive or peer != self._target or self._channel is None or not self._channel.opened:
            return
        self._left.append(self._channel)
        self._channel = _Channel(self._target, self._credentials)

    async def connect(self) -> GrpcLink:
        """A fresh stream; see `Connector`."""
        channel = self._open
        await self._close_unused()
        try:
            async with asyncio.timeout(self._timeout_s):
                await channel.channel.channel_ready()
        except TimeoutError:
            raise UnavailableError(
                f"{self._target} was not reachable within {self._timeout_s:g} s",
                hint="is the cloud running, do address and TLS flags fit?",
            ) from None
        return GrpcLink(self._target, channel, self._deadline_s)

    async def _close_unused(self) -> None:
        unused = [channel for channel in self._left if channel.links == 0]
        self._left = [channel for channel in self._left if channel.links]
        for channel in unused:
            await channel.channel.close()

    async def probe(self) -> pb.DescribeResponse:
        """Ask whether the cloud is there; see `Probed`."""
        return await self.describe()

    async def describe(self) -> pb.DescribeResponse:
        """What the service holds and allows.

        Raises:
            UnavailableError: if the cloud cannot be reached.
        """
        try:
            response: pb.DescribeResponse = await self._open.describe(pb.DescribeRequest(), timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _typed(error.code(), error.details()) from None
        return response


class GrpcLink:
    """One `Decode` stream."""

    def __init__(self, peer: str, channel: _Channel, deadline_s: float | None) -> None:
        self.peer = peer
        self._channel = channel
        self._call = channel.decode(timeout=deadline_s)
        channel.links += 1
        channel.opened += 1

    async def send(self, message: pb.DecodeRequest) -> None:
        """Send one message; see `Link`."""
        try:
            await self._call.write(message)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._reason() from None

    async def receive(self) -> pb.DecodeResponse | None:
        """The next message; see `Link`."""
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError:
            raise await self._reason() from None
        except asyncio.CancelledError:
            if not self._call.cancelled() or asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
            raise UnavailableError("the stream was cut") from None
        if message is not grpc.aio.EOF:
            return message  # type: ignore[no-any-return]
        if await self._call.code() is grpc.StatusCode.OK:
            return None
        raise await self._reason()

    async def half_close(self) -> None:
        """Say that nothing more will be sent; see `Link`."""
        try:
            await self._call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._reason() from None

    async def close(self) -> None:
        """Let go of the stream; see `Link`. Called once."""
        self._call.cancel()
        self._channel.links -= 1

    async def _reason(self) -> OutriderError:
        return _typed(await self._call.code(), await self._call.details())


def _typed(code: grpc.StatusCode, details: str | None) -> OutriderError:
    kind = _KINDS.get(code, InternalError)
    return kind(details or code.name.lower().replace("_", " "))
