"""What an operator's tools expect of the service: health, reflection, `Describe`."""

from __future__ import annotations

import asyncio
import socket

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.server import Server
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_shared.errors import ConfigError
from outrider_shared.wire import PROTOCOL_VERSION
from outrider_wire.v1 import verifier_pb2 as pb
from support.service import open_message, raw_stream, read_all, serving


def test_reflection_lists_the_services(tiny):
    """A generic client (grpcurl and its kin) finds the services by name."""

    async def run():
        async with serving(tiny) as (address, _), grpc.aio.insecure_channel(address) as channel:
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            names = {service.name for service in (await call.read()).list_services_response.service}
            await call.done_writing()
            assert {"outrider_wire.v1.Verifier", "grpc.health.v1.Health"} <= names

    asyncio.run(run())


def test_describe_tells_model_limits_and_protocol(tiny):
    """`Describe` tells what a device must know before it opens a session."""

    async def run():
        async with serving(tiny) as (address, engine), GrpcConnector(address) as connector:
            answer = await connector.describe()
            assert answer.protocol_version == PROTOCOL_VERSION
            assert answer.limits.max_nodes == engine.config.max_nodes
            (model,) = answer.models
            assert model.name == tiny.name
            assert model.tokenizer_sha256.hex() == tiny.tokenizer_sha256
            assert (model.vocabulary_size, model.context_length) == (97, 128)
            assert list(model.eos_token_ids) == [5]

    asyncio.run(run())


def test_port_in_use_is_a_clear_error(tiny):
    """Two services on one port: the second says so instead of sharing connections."""

    async def run():
        async with serving(tiny) as (address, _):
            second = Server(build_engine(tiny, EngineConfig(kv_tokens=256)), ServiceConfig(listen=address))
            with pytest.raises(ConfigError, match=address):
                await second.start()

    asyncio.run(run())


def test_addresses_that_are_taken_are_told_before_anything_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for config in (ServiceConfig(listen=address), ServiceConfig(metrics=address)):
            with pytest.raises(ConfigError, match=f"cannot listen on {address}: Address already in use"):
                config.check_free()
    ServiceConfig(listen=address, metrics="127.0.0.1:0").check_free()


def test_a_second_signal_sends_open_sessions_elsewhere_at_once(tiny):
    """A drain of minutes ends, and the device is told to resume at another replica."""

    async def run():
        server = Server(build_engine(tiny, EngineConfig(kv_tokens=4096, hold_s=60.0)), ServiceConfig(drain_s=600.0))
        address, hurry = await server.start(), asyncio.Event()
        async with raw_stream(address) as call:
            await call.write(open_message(tiny, [1, 2, 3], max_tokens=64, pace=pb.PACE_HOLD))
            assert (await call.read()).HasField("opened")
            stopping = asyncio.ensure_future(server.stop(hurry))
            await asyncio.sleep(0.05)
            assert not stopping.done()
            hurry.set()
            messages, status = await read_all(call)
            assert messages[-1].error.code == "unavailable"
            assert status is grpc.StatusCode.UNAVAILABLE
            await stopping

    asyncio.run(run())
