"""Whatever a device sends wrong: a clear typed error for it, and nobody else is disturbed."""

from __future__ import annotations

import asyncio
import math

import grpc
import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.thread import EngineThread
from outrider_cloud.generate import generate
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.directory import Directory
from outrider_cloud.service.handler import Service, SessionHandler
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.session.events import GenerateRequest
from outrider_shared.packing import pack_tokens, pack_varints
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb
from support.drafters import RandomDrafter
from support.service import client, collect, open_message, raw_stream, read_all, serving

PROMPT = [1, 2, 3, 4]


def _draft(**fields) -> pb.DecodeRequest:
    return pb.DecodeRequest(draft=pb.Draft(**fields))


# name -> (changes of Open, code, words that the message must have)
REFUSED_OPENS = {
    "wrong vocabulary": ({"vocabulary_size": 96}, "mismatch", ["96", "97"]),
    "wrong tokenizer": ({"tokenizer_sha256": b"\x01" * 32}, "mismatch", ["0101010101010101"]),
    "wrong protocol": ({"protocol_version": 99}, "mismatch", ["99", "1"]),
    "unknown model": ({"model": "gpt-9"}, "unknown_model", ["gpt-9", "tiny"]),
    "token out of range": ({"prompt": b"\x7f", "prompt_length": 1}, "protocol", ["127", "97"]),
    "empty prompt": ({"prompt": b"", "prompt_length": 0}, "invalid_prompt", ["empty"]),
    "prompt over the context": (
        {"prompt": pack_tokens([1] * 128, 97), "prompt_length": 128},
        "context_length_exceeded",
        ["128"],
    ),
    "huge prompt": ({"prompt": b"", "prompt_length": 2**31}, "context_length_exceeded", ["2147483648", "128"]),
    "torn prompt": ({"prompt": b"\x01", "prompt_length": 4}, "protocol", ["4 bytes", "1"]),
    "negative temperature": ({"sampling": pb.Sampling(temperature=-0.5)}, "invalid_parameter", ["temperature", "-0.5"]),
    "temperature not a number": ({"sampling": pb.Sampling(temperature=math.nan)}, "invalid_parameter", ["temperature"]),
    "infinite temperature": ({"sampling": pb.Sampling(temperature=math.inf)}, "invalid_parameter", ["inf"]),
    "top_p zero": ({"sampling": pb.Sampling(top_p=0.0)}, "invalid_parameter", ["top_p", "0.0"]),
    "top_p above one": ({"sampling": pb.Sampling(top_p=1.5)}, "invalid_parameter", ["top_p", "1.5"]),
    "min_p above one": ({"sampling": pb.Sampling(min_p=1.5)}, "invalid_parameter", ["min_p"]),
    "no tokens asked for": ({"max_tokens": 0}, "invalid_parameter", ["max_tokens"]),
    "malformed session id": ({"session_id": "a/b"}, "protocol", ["a/b"]),
    "unknown pace": ({"pace": 17}, "invalid_parameter", ["17"]),
    "too many stop tokens": ({"stop_token_ids": list(range(65))}, "invalid_parameter", ["65"]),
}

# name -> (messages after Open, code, words)
REFUSED_MESSAGES = {
    "draft token out of range": ([_draft(tokens=b"\x7f", count=1, anchor=4)], "protocol", ["127"]),
    "parent that does not exist": (
        [_draft(tokens=pack_tokens([1], 97), count=1, parents=pack_varints([9]), anchor=4)], "invalid_draft", ["-9"]),
    "anchor beyond the log": ([_draft(tokens=pack_tokens([1], 97), count=1, anchor=99)], "invalid_draft", ["99"]),
    "anchor missing": (
        [_draft(tokens=pack_tokens([1], 97), count=1, parents=pack_varints([0]))], "invalid_draft", ["anchor"]),
    "too many nodes in a message": (
        [_draft(tokens=pack_tokens([1] * 129, 97), count=129, anchor=4)], "invalid_draft", ["129", "128"]),
    "too many nodes pending": (
        [_draft(tokens=pack_tokens(range(90), 97), count=90, parents=pack_varints([0] * 90), anchor=5)],
        "invalid_draft", ["pending", "64"]),
    "count and bytes differ": ([_draft(tokens=b"\x01\x02\x03", count=1, anchor=4)], "protocol", ["3"]),
    "torn varints": ([_draft(tokens=pack_tokens([1], 97), count=1, parents=b"\x80", anchor=4)], "protocol", ["varint"]),
    "second open": ([pb.DecodeRequest(open=pb.Open())], "protocol", ["open"]),
    "message without a body": ([pb.DecodeRequest()], "protocol", ["None"]),
}  # fmt: skip


async def _error(address: str, messages: list[pb.DecodeRequest]) -> tuple[pb.Error, grpc.StatusCode]:
    async with raw_stream(address) as call:
        await call.write(messages[0])
        if len(messages) > 1:
            while (await call.read()).WhichOneof("body") != "commit":
                pass
        for message in messages[1:]:
            await call.write(message)
        answers, status = await read_all(call)
    assert answers[-1].WhichOneof("body") == "error", answers
    return answers[-1].error, status


@pytest.mark.parametrize("name", REFUSED_OPENS)
def test_wrong_open_is_refused_with_its_reason(tiny, name):
    """Each field of Open is checked, and the error names the value."""
    changes, code, words = REFUSED_OPENS[name]

    async def run():
        async with serving(tiny) as (address, engine):
            error, status = await _error(address, [open_message(tiny, PROMPT, **changes)])
            assert error.code == code
            assert status is not grpc.StatusCode.OK
            assert status is not grpc.StatusCode.INTERNAL
            for word in words:
                assert word in error.message + error.hint
            assert not error.retryable
            assert not engine.sessions

    asyncio.run(run())


@pytest.mark.parametrize("name", REFUSED_MESSAGES)
def test_wrong_message_ends_that_session_alone(tiny, name):
    """A broken draft ends its own session with a typed error; a neighbour decodes on to its plain tokens."""
    messages, code, words = REFUSED_MESSAGES[name]

    async def run():
        config = EngineConfig(kv_tokens=4096, max_nodes=64, hold_s=5.0)
        request = GenerateRequest((7, 8, 9), 40, SamplingParams(0.9, seed=4), ignore_eos=True)
        expected = generate(build_engine(tiny, config), request.prompt, request.params, 40, ignore_eos=True).tokens
        async with serving(tiny, config) as (address, engine), GrpcConnector(address) as connector:
            neighbour = asyncio.ensure_future(collect(client(tiny, connector, lambda: RandomDrafter(1, 97)), request))
            opening = open_message(tiny, PROMPT, pace=pb.PACE_HOLD, max_tokens=100)
            error, _ = await _error(address, [opening, *messages])
            assert error.code == code
            for word in words:
                assert word in error.message + error.hint
            tokens, _ = await neighbour
            assert tokens == expected
        assert engine.pool.used == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    "first", [b"\xff\xff\xff\xff", b"\x0a\xff", bytes(range(256)) * 8], ids=["junk", "torn", "noise"]
)
def test_garbage_bytes_are_a_protocol_error(tiny, first):
    """Bytes that are no message get a typed error, not gRPC's own failure."""

    async def run():
        async with serving(tiny) as (address, _), raw_stream(address, as_bytes=True) as call:
            await call.write(first)
            answers, status = await read_all(call)
            assert answers[-1].error.code == "protocol"
            assert status is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())


def test_draft_before_open_is_a_protocol_error(tiny):
    """The first message must be Open."""

    async def run():
        async with serving(tiny) as (address, _):
            error, _ = await _error(address, [_draft(count=0)])
            assert error.code == "protocol"
            assert "draft" in error.message

    asyncio.run(run())


def test_second_stream_with_the_same_id_is_refused_and_the_first_goes_on(tiny):
    """An id in use is refused unless the lease is shown; the first stream does not notice."""

    async def run():
        async with serving(tiny) as (address, engine), raw_stream(address) as first:
            opening = open_message(tiny, PROMPT, pace=pb.PACE_HOLD, max_tokens=100)
            await first.write(opening)
            assert (await first.read()).WhichOneof("body") == "opened"
            error, status = await _error(address, [opening])
            assert error.code == "session_exists"
            assert status is grpc.StatusCode.ALREADY_EXISTS
            await first.write(pb.DecodeRequest(cancel=pb.Cancel()))
            answers, status = await read_all(first)
            assert answers[-1].commit.finish == pb.FINISH_REASON_CANCELLED
            assert status is grpc.StatusCode.OK
        assert engine.pool.used == 0

    asyncio.run(run())


def test_device_that_stops_reading_is_cut_and_its_memory_freed(tiny):
    """A transport that takes nothing more is given up after the time allowed; the lease ends, the KV is free again."""

    async def run():
        engine = build_engine(tiny, EngineConfig(kv_tokens=4096, lease_s=0.1))
        thread = EngineThread(engine)
        thread.start()
        service = Service(thread, tiny, ServiceConfig(stall_timeout_s=0.2), Directory(4), 64)

        async def take_nothing(_: pb.DecodeResponse) -> None:
            await asyncio.Event().wait()

        async def requests():
            yield open_message(tiny, PROMPT, max_tokens=50)
            await asyncio.Event().wait()

        with pytest.raises(asyncio.CancelledError):
            await SessionHandler(service, "stalled", take_nothing).run(requests())
        await asyncio.sleep(0.3)
        await asyncio.wrap_future(thread.ask(lambda e: e.step()))
        thread.stop()
        assert not engine.sessions
        assert engine.pool.used == 0

    asyncio.run(run())


def test_device_that_reads_nothing_costs_its_neighbours_nothing(tiny):
    """While one stream is never read, another gets its answer, and all memory is free in the end."""

    async def run():
        config = EngineConfig(kv_tokens=4096, lease_s=0.2)
        async with serving(tiny, config) as (address, engine):
            async with raw_stream(address) as stalled, GrpcConnector(address) as connector:
                await stalled.write(open_message(tiny, PROMPT, max_tokens=100, logprobs=True))
                tokens, _ = await collect(client(tiny, connector), GenerateRequest((7,), 30, ignore_eos=True))
                assert len(tokens) == 30
            for _ in range(100):
                if not engine.sessions:
                    break
                await asyncio.sleep(0.05)
        assert not engine.sessions
        assert engine.pool.used == 0

    asyncio.run(run())


def test_message_over_the_size_bound_is_refused(tiny):
    """A message larger than the service takes ends the stream without reaching the engine."""

    async def run():
        async with (
            serving(tiny, max_message_bytes=4096) as (address, engine),
            raw_stream(address, as_bytes=True) as call,
        ):
            await call.write(b"\x00" * 8192)
            _, status = await read_all(call)
            assert status is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert not engine.sessions

    asyncio.run(run())


def test_stream_without_open_is_ended(tiny):
    """A stream that says nothing is ended after the time allowed."""

    async def run():
        async with serving(tiny, open_timeout_s=0.2) as (address, _), raw_stream(address) as call:
            answers, status = await read_all(call)
            assert answers[-1].error.code == "protocol"
            assert status is grpc.StatusCode.INVALID_ARGUMENT

    asyncio.run(run())
