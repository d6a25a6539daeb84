"""What an operator's tools expect of the service: health, reflection, `Describe`."""

from __future__ import annotations

import asyncio

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
from support.service import serving


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
