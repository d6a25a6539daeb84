"""One session's stream, from Open to the last commit. Knows messages, not sockets: gRPC and tests drive it alike."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from outrider_cloud.engine.events import Committed, Event, Failed, Opened
from outrider_cloud.replay.recording import Recording
from outrider_cloud.service.asking import whole_open
from outrider_cloud.service.directory import Directory, Stream
from outrider_cloud.service.memory import LogMemory
from outrider_cloud.service.opening import read_open
from outrider_cloud.service.outbox import Outbox, commit_to_wire, is_last
from outrider_cloud.service.padding import PaddedStream
from outrider_shared.errors import (
    DraftError,
    GrammarError,
    InternalError,
    OutriderError,
    ProtocolError,
    UnavailableError,
)
from outrider_shared.wire import draft_count, error_to_wire, grammar_from_wire
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from outrider_cloud.engine.engine import Engine
    from outrider_cloud.engine.events import Request
    from outrider_cloud.engine.thread import EngineThread
    from outrider_cloud.grammar.compiler import GrammarCompiler
    from outrider_cloud.grammar.matcher import Matcher
    from outrider_cloud.model.loading import LoadedModel
    from outrider_cloud.replay.writer import ReplayWriter
    from outrider_cloud.service.config import ServiceConfig
    from outrider_cloud.service.metrics import Metrics
    from outrider_shared.ids import SessionId

    Send = Callable[[pb.DecodeResponse], Awaitable[None]]

_log = structlog.get_logger(__name__)

# How long a device that has its answer may take to end the stream.
_PART_S = 1.0


@dataclass(frozen=True)
class Service:
    """What all streams share.

    Attributes:
        thread: The engine.
        model: The target.
        config: Bounds.
        directory: Live streams.
        max_nodes: Pending nodes that the engine allows a session.
        grammars: Compiles what answers must match; None refuses grammars.
        memory: Logs that devices need not send again.
        replay: Keeps the refused drafts of sessions that agreed; None keeps none.
        metrics: Counts what happens; None counts nothing.
    """

    thread: EngineThread
    model: LoadedModel
    config: ServiceConfig
    directory: Directory
    max_nodes: int
    grammars: GrammarCompiler | None = None
    memory: LogMemory = field(default_factory=lambda: LogMemory(0))
    replay: ReplayWriter | None = None
    metrics: Metrics | None = None


class SessionHandler:
    """Serves one stream.

    Args:
        service: Shared parts.
        device: Who the peer is.
        send: Sends one message; returns when the transport took it.
    """

    def __init__(self, service: Service, device: str, send: Send) -> None:
        self._service = service
        self._device = device
        self._send = send
        self._outbox = Outbox()
        self._recording: Recording | None = None
        self._left = False
        self._told = False
        self._part_s = _PART_S
        self._opened_at = time.monotonic()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, requests: AsyncIterator[pb.DecodeRequest]) -> OutriderError | None:
        """Serve until the session is finished or failed; the error, if any, was sent to the device.

        On a padded stream errors are told in blocks alone: none is returned, and the transport ends as always.

        Raises:
            asyncio.CancelledError: if the transport broke; the session is leased for its return.
        """
        config = self._service.config
        try:
            first = await self._first(requests)
            if not first.HasField("padded"):
                return await self._answer(first, requests)
            stream = PaddedStream(first.padded, requests, self._send, config.max_message_bytes)
        except OutriderError as error:
            return await self._refuse(error)
        async with stream:
            self._send, self._part_s = stream.send, 0.0  # its blocks come and go whoever has ended
            messages = stream.messages()
            try:
                await self._answer(await self._first(messages), messages)
            except OutriderError as error:
                await self._refuse(error)
            await stream.part(config.stall_timeout_s)
        return None

    async def _first(self, requests: AsyncIterator[pb.DecodeRequest]) -> pb.DecodeRequest:
        """The first message of a stream. Raises ProtocolError if none comes in time."""
        limit = self._service.config.open_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await anext(requests)
        except StopAsyncIteration:
            raise ProtocolError("the stream ended before Open") from None
        except TimeoutError:
            raise ProtocolError(f"no Open came within {limit:g} s") from None

    async def _answer(self, first: pb.DecodeRequest, requests: AsyncIterator[pb.DecodeRequest]) -> OutriderError | None:
        try:
            if first.WhichOneof("body") != "open":
                raise ProtocolError(f"the first message is {first.WhichOneof('body')!r}, not 'open'")
            await self._serve(first.open, requests)
        except TimeoutError:
            limit = self._service.config.open_timeout_s
            return await self._refuse(ProtocolError(f"the whole prompt did not come within {limit:g} s"))
        except OutriderError as error:
            return await self._refuse(error)
        except asyncio.CancelledError:
            raise
        except Exception:  # noqa: BLE001 - logged; the device gets a typed error
            _log.exception("session handler failed")
            return await self._refuse(InternalError("the service failed", hint="resume, here or elsewhere"))
        return None

    async def _refuse(self, error: OutriderError) -> OutriderError:
        await self._send_within(pb.DecodeResponse(error=error_to_wire(error)))
        if self._service.metrics is not None:
            self._service.metrics.refused(error.code)
        _log.info("session refused", device=self._device, code=error.code, reason=error.message)
        return error

    async def _serve(self, message: pb.Open, requests: AsyncIterator[pb.DecodeRequest]) -> None:
        self._opened_at = time.monotonic()
        memory, limit = self._service.memory, self._service.config.open_timeout_s
        whole = await whole_open(message, requests, memory, self._device, self._send_within, limit)
        message = whole.message
        request = read_open(message, self._service.model, whole.prefix)
        request = self._recorded(dataclasses.replace(request, scope=self._scope()))
        stream = Stream(request.session_id, self._device, request, self._end)
        resumable = self._service.directory.enter(stream, message.lease)
        outcome = "broken"
        try:
            if message.HasField("grammar"):
                request = dataclasses.replace(request, matcher=await self._compile(message, request))
            await self._start(request, resumable=resumable)
            reader = await self._exchange(stream, whole.requests)
            outcome = "finished"
        except OutriderError:
            outcome = "failed"
            raise
        finally:
            # A device that has its answer may be gone before this task runs again.
            self._leave(stream, "finished" if self._told else outcome)
        await _hear_out(reader, self._part_s)

    def _scope(self) -> bytes:
        """Whose KV the session may share: its own device's, unless all are one owner's."""
        if self._service.config.share_prefixes:
            return b""
        return hashlib.blake2b(self._device.encode(), digest_size=16).digest()

    def _recorded(self, request: Request) -> Request:
        """Begin to record if the device agreed and this service keeps records; else the engine need not tell."""
        replay = self._service.replay
        if request.report_refused and replay is not None:
            self._recording = Recording(request, replay.context_tokens)
        return dataclasses.replace(request, report_refused=self._recording is not None)

    def _take(self, event: Event) -> None:
        if self._recording is not None:
            self._recording.take(event)
        self._outbox.put(event)

    async def _compile(self, message: pb.Open, request: Request) -> Matcher:
        grammar, compiler = grammar_from_wire(message.grammar), self._service.grammars
        if compiler is None:
            raise GrammarError("this service follows no grammars", hint="leave out the grammar")
        return await compiler.prepare(grammar, request.committed)

    async def _start(self, request: Request, *, resumable: bool) -> None:
        loop = asyncio.get_running_loop()
        sink = functools.partial(_post, loop, self._take)

        def start(engine: Engine) -> None:
            if resumable and engine.resume(request.session_id, request.committed, sink):
                return
            engine.close(request.session_id)
            engine.open(request, sink)

        await asyncio.wrap_future(self._service.thread.ask(start))

    async def _exchange(self, stream: Stream, requests: AsyncIterator[pb.DecodeRequest]) -> asyncio.Task[None]:
        """Move messages both ways until the session is finished; returns what still reads."""
        reader = asyncio.ensure_future(self._read(stream, requests))
        writer = asyncio.ensure_future(self._write(stream))
        waits: set[asyncio.Future[None]] = {reader, writer, self._ended}
        try:
            while not writer.done():
                done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
                # A device that has sent all it wants may still read: the end of its half is no end of the session.
                waits -= done
        except BaseException:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            raise
        return reader

    async def _read(self, stream: Stream, requests: AsyncIterator[pb.DecodeRequest]) -> None:
        thread, session_id, most = self._service.thread, stream.session_id, self._service.config.max_nodes_per_message
        async for request in requests:
            if self._left:
                continue
            kind = request.WhichOneof("body")
            if kind == "cancel":
                thread.post(lambda engine: engine.cancel(session_id))
            elif kind == "ping":
                self._outbox.answer(request.ping)
            elif kind != "draft":
                raise ProtocolError(f"a message of kind {kind!r} came after Open")
            elif (count := draft_count(request.draft, self._service.model.vocabulary)) > most:
                raise DraftError(f"{count} nodes in one message", hint=f"at most {most} are taken")
            else:
                thread.post(functools.partial(_draft, session_id, request.draft, time.monotonic()))

    async def _write(self, stream: Stream) -> None:
        while True:
            event = await self._outbox.take()
            if isinstance(event, pb.Pong):
                await self._send_within(pb.DecodeResponse(pong=event))
                continue
            if isinstance(event, Failed):
                raise event.error
            await self._send_within(self._message(event, stream))
            if is_last(event):
                self._told = True
                return

    async def _send_within(self, message: pb.DecodeResponse) -> None:
        limit = self._service.config.stall_timeout_s
        try:
            async with asyncio.timeout(limit):
                await self._send(message)
        except TimeoutError:
            # No error message: it could not be read either. The transport is cut, the KV leased.
            _log.warning("device stopped reading", device=self._device, seconds=limit)
            raise asyncio.CancelledError from None

    def _message(self, event: Event, stream: Stream) -> pb.DecodeResponse:
        if isinstance(event, Committed):
            self._measure(event, stream)
            stream.log += event.tokens
            return pb.DecodeResponse(commit=commit_to_wire(event, self._service.model.vocabulary))
        assert isinstance(event, Opened)
        opened = pb.Opened(
            lease=stream.lease,
            length=event.length,
            context_length=self._service.model.context_length,
            max_nodes=self._service.max_nodes,
            max_nodes_per_message=self._service.config.max_nodes_per_message,
            cached_tokens=event.cached_tokens,
            log_key=stream.log_key if self._service.memory.keeps else b"",
        )
        self._service.memory.keep(stream.log_key, self._device, stream.log)
        return pb.DecodeResponse(opened=opened)

    def _measure(self, event: Committed, stream: Stream) -> None:
        """Count a commit that is about to be told."""
        metrics = self._service.metrics
        if metrics is None:
            return
        prompt, taken_s = len(stream.request.prompt), time.monotonic() - self._opened_at
        if event.tokens and len(stream.log) == prompt:
            metrics.first_token(taken_s)
        if event.usage is not None:
            metrics.answered(event.usage, event.length - prompt, taken_s)

    def _end(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    def _leave(self, stream: Stream, outcome: str) -> None:
        self._left = True
        session_id = stream.session_id
        drained = self._ended.done() and isinstance(self._ended.exception(), UnavailableError)
        mine = self._service.directory.leave(stream, broken=outcome == "broken" or drained)
        if mine and outcome == "broken":
            self._service.thread.post(lambda engine: engine.park(session_id))
        elif mine:
            self._service.thread.post(lambda engine: engine.close(session_id))
        self._ended.cancel()
        self._service.memory.keep(stream.log_key, self._device, stream.log)
        if self._recording is not None and (record := self._recording.record()) is not None:
            assert self._service.replay is not None
            self._service.replay.put(record)
        if self._service.metrics is not None:
            self._service.metrics.left(outcome)
        _log.info("session left", session=session_id, device=self._device, outcome=outcome)


async def _hear_out(reader: asyncio.Task[None], most_s: float) -> None:
    """Let a device that has its answer end the stream.

    If the service did, a message that the device just sends would fail, and take along what it has not read yet.
    """
    try:
        await asyncio.wait([reader], timeout=most_s)
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


def _draft(session_id: SessionId, draft: pb.Draft, arrived: float, engine: Engine) -> None:
    engine.draft(session_id, draft, arrived)


def _post(loop: asyncio.AbstractEventLoop, take: Callable[[Event], None], event: Event) -> None:
    """Hand an event from the engine's thread to the loop; a loop that has closed wants no more events."""
    try:
        loop.call_soon_threadsafe(take, event)
    except RuntimeError:
        if not loop.is_closed():
            raise
