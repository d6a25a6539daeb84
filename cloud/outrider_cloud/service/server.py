"""The gRPC process around the handlers: sockets, TLS, health, reflection, and a graceful end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import TYPE_CHECKING, Any

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from outrider_cloud.engine.thread import EngineThread
from outrider_cloud.grammar.compiler import GrammarCompiler
from outrider_cloud.replay.store import Kind, ReplayStore
from outrider_cloud.replay.writer import ReplayWriter
from outrider_cloud.service.directory import Directory
from outrider_cloud.service.handler import Service, SessionHandler
from outrider_cloud.service.memory import LogMemory
from outrider_cloud.service.metrics import Endpoint, Metrics
from outrider_shared import wire
from outrider_shared.errors import ConfigError, OutriderError, ProtocolError, UnavailableError
from outrider_shared.version import version
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from outrider_cloud.engine.engine import Engine
    from outrider_cloud.parallel.watch import Failure
    from outrider_cloud.service.config import ServiceConfig, TlsFiles

_log = structlog.get_logger(__name__)

_STATUS = {
    "invalid_parameter": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_prompt": grpc.StatusCode.INVALID_ARGUMENT,
    "context_length_exceeded": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_grammar": grpc.StatusCode.INVALID_ARGUMENT,
    "invalid_draft": grpc.StatusCode.INVALID_ARGUMENT,
    "protocol": grpc.StatusCode.INVALID_ARGUMENT,
    "unknown_model": grpc.StatusCode.NOT_FOUND,
    "mismatch": grpc.StatusCode.FAILED_PRECONDITION,
    "session_exists": grpc.StatusCode.ALREADY_EXISTS,
    "limit": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
}
_OPTIONS = (
    # Two services on one port would share connections at random: refuse instead.
    ("grpc.so_reuseport", 0),
    # A peer that vanished without a word is noticed within half a minute, and a device may ping as often as every 5 s.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


# How long a device that was sent an error has to read it before its stream ends.
_LEAVE_S = 0.1


class Server:
    """One engine behind one port.

    Args:
        engine: Ready to run; the server's thread owns it from `start` on.
        config: Address and bounds.

    Attributes:
        metrics: What Prometheus reads.
        metrics_address: HOST:PORT where it reads them; empty where they are not served.
    """

    def __init__(self, engine: Engine, config: ServiceConfig) -> None:
        self._config = config
        self._engine_config = engine.config
        self._thread = EngineThread(engine)
        self._grammars = GrammarCompiler(engine.runner.loaded, config.grammar_timeout_s)
        directory = Directory(config.max_sessions_per_device)
        self.metrics = Metrics(engine, directory)
        self.metrics_address = ""
        self._endpoint: Endpoint | None = None
        self._service = Service(
            self._thread,
            engine.runner.loaded,
            config,
            directory,
            engine.config.max_nodes,
            self._grammars,
            LogMemory(config.remembered_tokens),
            _replay(config, engine),
            self.metrics,
        )
        self._draining = False
        self._health = health.aio.HealthServicer()
        self._server: Any = None

    async def start(self) -> str:
        """Listen; returns the address with the port that was taken.

        Raises:
            ConfigError: if the address cannot be bound or the certificates are no PEM.
        """
        options = [*_OPTIONS, ("grpc.max_receive_message_length", self._config.max_message_bytes)]
        self._server = grpc.aio.server(options=options)
        self._server.add_generic_rpc_handlers((self._methods(),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = (wire.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        port = self._bind()
        if self._config.metrics:
            self._endpoint = Endpoint(self.metrics, self._config.metrics)
            self.metrics_address = self._endpoint.address
            _log.info("metrics", url=f"http://{self.metrics_address}/metrics")
        if self._service.replay is not None:
            self._service.replay.start()
        self._thread.start()
        await self._server.start()
        await self._set_health(serving=True)
        return f"{self._config.listen.rpartition(':')[0]}:{port}"

    async def stop(self, hurry: asyncio.Event | None = None) -> None:
        """Refuse new sessions, let open ones finish within `drain_s`, send the rest elsewhere, and end.

        Args:
            hurry: Once it is set, open sessions are sent elsewhere at once.
        """
        self._draining = True
        await self._set_health(serving=False)
        _log.info("draining", sessions=len(self._service.directory), seconds=self._config.drain_s)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.drain_s):
                while len(self._service.directory) and not (hurry and hurry.is_set()):  # noqa: ASYNC110 - a stop may poll; streams end in many ways
                    await asyncio.sleep(0.02)
        for stream in self._service.directory.streams():
            stream.end(UnavailableError("the service is stopping", hint="resume at another replica"))
        await self._server.stop(grace=2.0)
        await asyncio.to_thread(self._thread.stop)
        await asyncio.to_thread(self._grammars.close)
        await self._close_threads()

    async def abandon(self, reason: str) -> None:
        """Send all sessions elsewhere at once; a step that waits for a lost rank is not waited for."""
        self._draining = True
        await self._set_health(serving=False)
        for stream in self._service.directory.streams():
            stream.end(UnavailableError(reason, hint="resume at another replica"))
        await self._server.stop(grace=1.0)
        await self._close_threads()

    async def _close_threads(self) -> None:
        if self._service.replay is not None:
            await asyncio.to_thread(self._service.replay.stop)
        if self._endpoint is not None:
            await asyncio.to_thread(self._endpoint.close)

    async def serve_until_signal(self, on_ready: Callable[[str], None], failure: Failure | None = None) -> None:
        """Run until SIGTERM or SIGINT, then drain; a second signal ends the draining.

        Raises:
            UnavailableError: if a rank of the team was lost; all sessions were told.
        """
        stopping, hurry = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def signalled() -> None:
            (hurry if stopping.is_set() else stopping).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, signalled)
        on_ready(await self.start())
        if failure is not None:
            failure.handler = _waking(loop, stopping)
            if failure.reason:
                stopping.set()
        await stopping.wait()
        if failure is not None and failure.reason:
            await self.abandon(failure.reason)
            raise UnavailableError(failure.reason, hint="start the service again")
        await self.stop(hurry)

    def _bind(self) -> int:
        try:
            if self._config.tls is None:
                port = self._server.add_insecure_port(self._config.listen)
            else:
                port = self._server.add_secure_port(self._config.listen, _credentials(self._config.tls))
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"cannot listen on {self._config.listen}: {error}", hint="is the port taken?") from error
        if port == 0:
            raise ConfigError(f"cannot listen on {self._config.listen}", hint="is the port taken, is the host ours?")
        return int(port)

    async def _set_health(self, *, serving: bool) -> None:
        kind = health_pb2.HealthCheckResponse.ServingStatus
        status = kind.SERVING if serving else kind.NOT_SERVING
        for name in ("", wire.SERVICE):
            await self._health.set(name, status)

    def _methods(self) -> grpc.GenericRpcHandler:
        decode = grpc.stream_stream_rpc_method_handler(
            self._decode, request_deserializer=_parse, response_serializer=pb.DecodeResponse.SerializeToString
        )
        describe = grpc.unary_unary_rpc_method_handler(
            self._describe,
            request_deserializer=pb.DescribeRequest.FromString,
            response_serializer=pb.DescribeResponse.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(wire.SERVICE, {"Decode": decode, "Describe": describe})

    async def _decode(self, requests: AsyncIterator[pb.DecodeRequest | DecodeError], context: Any) -> None:
        handler = SessionHandler(self._service, _device(context), _Writer(context.write))
        if self._draining:
            error: OutriderError | None = UnavailableError("the service is stopping", hint="try another replica")
            self.metrics.refused("unavailable")
        else:
            error = await handler.run(_messages(requests))
        if error is not None:
            # A device that is writing as the status comes is told of that by its transport, not of the reason: let it
            # read the reason first, and leave by itself.
            await asyncio.sleep(_LEAVE_S)
            await context.abort(_STATUS.get(error.code, grpc.StatusCode.INTERNAL), str(error))

    async def _describe(self, _: pb.DescribeRequest, __: Any) -> pb.DescribeResponse:
        model, config, limits = self._service.model, self._config, self._engine_config
        return pb.DescribeResponse(
            protocol_version=wire.PROTOCOL_VERSION,
            version=version(),
            models=[
                pb.Model(
                    name=model.name,
                    fingerprint=bytes.fromhex(model.fingerprint),
                    tokenizer_sha256=bytes.fromhex(model.tokenizer_sha256),
                    vocabulary_size=model.vocabulary,
                    context_length=model.context_length,
                    eos_token_ids=sorted(model.eos),
                    exact=limits.exact,
                )
            ],
            limits=pb.Limits(
                max_sessions=limits.max_sessions,
                max_nodes=limits.max_nodes,
                max_nodes_per_message=config.max_nodes_per_message,
                max_message_bytes=config.max_message_bytes,
                max_sessions_per_device=config.max_sessions_per_device,
            ),
        )


class _Writer:
    """Writes to one stream, message by message.

    gRPC takes no second message while it writes the first, not even when whoever waited for that was cancelled: an
    error then waits for the commit before it.
    """

    def __init__(self, write: Callable[[pb.DecodeResponse], Awaitable[None]]) -> None:
        self._write = write
        self._last: asyncio.Future[None] | None = None

    async def __call__(self, message: pb.DecodeResponse) -> None:
        """Write one message; returns when the transport took it."""
        if self._last is not None and not self._last.done():
            await asyncio.wait([self._last])
        self._last = asyncio.ensure_future(self._write(message))
        # Who was cancelled does not hear of it.
        self._last.add_done_callback(lambda last: last.cancelled() or last.exception())
        await asyncio.shield(self._last)


def _waking(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> Callable[[], None]:
    """Sets an event of the loop, from any thread."""

    def wake() -> None:
        loop.call_soon_threadsafe(event.set)

    return wake


def _replay(config: ServiceConfig, engine: Engine) -> ReplayWriter | None:
    """What keeps refused drafts, if anything does. Raises ConfigError, StorageError."""
    if config.replay is None:
        return None
    model = engine.runner.loaded
    kind = Kind(model.fingerprint, model.tokenizer_sha256, model.vocabulary, model.name)
    return ReplayWriter(ReplayStore(config.replay, kind), config.replay.context_tokens)


def _parse(data: bytes) -> pb.DecodeRequest | DecodeError:
    """A message, or the reason why it is none: gRPC itself would end the stream without a typed error."""
    try:
        return pb.DecodeRequest.FromString(data)
    except DecodeError as error:
        return error


async def _messages(requests: AsyncIterator[pb.DecodeRequest | DecodeError]) -> AsyncIterator[pb.DecodeRequest]:
    async for request in requests:
        if isinstance(request, DecodeError):
            raise ProtocolError(f"unreadable message: {request}", hint="the peer does not speak this protocol")
        yield request


def _device(context: Any) -> str:
    """The certificate's CN under mTLS, else the peer's address without its port."""
    names = context.auth_context().get("x509_common_name") or []
    if names:
        name: bytes = names[0]
        return name.decode("utf-8", "replace")
    peer: str = context.peer()
    return peer.rpartition(":")[0]


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    def read(path: Path) -> bytes:
        data = path.read_bytes()
        if b"-----BEGIN" not in data:
            raise ConfigError(f"{path} is not PEM")
        return data

    pair = (read(tls.key), read(tls.certificate))
    if tls.client_ca is None:
        return grpc.ssl_server_credentials([pair])
    return grpc.ssl_server_credentials([pair], root_certificates=read(tls.client_ca), require_client_auth=True)
