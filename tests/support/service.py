"""A real gRPC server in this process, and raw streams to it."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING, Any

import grpc

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.server import Server
from outrider_edge.link.backoff import Backoff
from outrider_edge.session.events import Finished, GenerateRequest, Tokens
from outrider_edge.session.generate import Client
from outrider_edge.session.offline import OfflinePolicy
from outrider_edge.session.policy import DraftPolicy
from outrider_shared import wire
from outrider_shared.ids import new_session_id
from outrider_shared.packing import pack_tokens
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from outrider_cloud.engine.engine import Engine
    from outrider_cloud.model.loading import LoadedModel
    from outrider_edge.link.link import Connector
    from outrider_shared.drafting.drafter import Drafter


@contextlib.asynccontextmanager
async def serving(
    model: LoadedModel, engine_config: EngineConfig | None = None, **service: Any
) -> AsyncIterator[tuple[str, Engine]]:
    """A server on a free loopback port; yields its address and its engine (look, do not touch, while it runs)."""
    engine = build_engine(model, engine_config or EngineConfig(kv_tokens=4096))
    server = Server(engine, ServiceConfig(**{"drain_s": 5.0, **service}))
    address = await server.start()
    try:
        yield address, engine
    finally:
        await server.stop()


def open_message(target: LoadedModel, tokens: list[int], /, **changes: Any) -> pb.DecodeRequest:
    """A valid Open, with fields changed."""
    fields = {
        "session_id": new_session_id(), "protocol_version": wire.PROTOCOL_VERSION,
        "tokenizer_sha256": bytes.fromhex(target.tokenizer_sha256), "vocabulary_size": target.vocabulary,
        "max_tokens": 8, "pace": pb.PACE_AHEAD, "prompt": pack_tokens(tokens, target.vocabulary),
        "prompt_length": len(tokens), "ignore_eos": True,
    }  # fmt: skip
    return pb.DecodeRequest(open=pb.Open(**{**fields, **changes}))


@contextlib.asynccontextmanager
async def raw_stream(address: str, *, as_bytes: bool = False) -> AsyncIterator[Any]:
    """A bare `Decode` call; with `as_bytes`, whatever bytes are written go out."""
    async with grpc.aio.insecure_channel(address) as channel:
        yield channel.stream_stream(
            f"/{wire.SERVICE}/Decode",
            request_serializer=(lambda data: data) if as_bytes else pb.DecodeRequest.SerializeToString,
            response_deserializer=pb.DecodeResponse.FromString,
        )()


async def read_all(call: Any) -> tuple[list[pb.DecodeResponse], grpc.StatusCode]:
    """Messages up to the end of the stream, and its status."""
    messages = []
    with contextlib.suppress(grpc.aio.AioRpcError):
        while (message := await call.read()) is not grpc.aio.EOF:
            messages.append(message)
    return messages, await call.code()


def client(
    model: LoadedModel, connector: Connector, new_drafter: Callable[[], Drafter] | None = None, **changes: Any
) -> Client:
    """A device's client over any connector, quick to try again."""
    base = Client(
        connector, model.vocabulary, model.tokenizer_sha256, new_drafter,
        policy=DraftPolicy(depth=4), backoff=Backoff(first_s=0.01, most_s=0.1), offline=OfflinePolicy(after_s=20.0),
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


async def collect(device: Client, request: GenerateRequest) -> tuple[list[int], Finished]:
    """One answer's tokens and its last event."""
    tokens: list[int] = []
    last: Any = None
    async for event in device.generate(request):
        if isinstance(event, Tokens):
            tokens += [token.id for token in event.tokens]
        last = event
    return tokens, last
