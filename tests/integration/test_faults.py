"""Streams that break, clouds that die, services that stop: over real sockets, the text is what it would have been."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.session.events import GenerateRequest, Reconnecting, Tokens
from outrider_shared.errors import DeadlineError, UnavailableError
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb
from support.drafters import OracleDrafter, RandomDrafter
from support.service import client, collect, open_message, raw_stream, read_all, serving

CONFIG = EngineConfig(kv_tokens=16384, lease_s=5.0)


def _request(seed: int, tokens: int = 60) -> GenerateRequest:
    return GenerateRequest((seed % 90, 2, 3), tokens, SamplingParams(0.9, top_k=40, seed=seed), ignore_eos=True)


def _plain(model, request: GenerateRequest) -> list[int]:
    engine = build_engine(model, CONFIG)
    return generate(engine, request.prompt, request.params, request.max_tokens, ignore_eos=request.ignore_eos).tokens


class CuttingConnector:
    """Cuts each link after a random number of received messages, as a flaky radio does."""

    def __init__(self, connector: GrpcConnector, seed: int, cuts: int):
        self._connector, self._random, self.cuts = connector, random.Random(seed), cuts

    where = "a flaky link"

    def note(self, peer, *, alive):
        self._connector.note(peer, alive=alive)

    async def connect(self):
        link = await self._connector.connect()
        if self.cuts == 0:
            return link
        self.cuts -= 1
        return CutLink(link, self._random.randint(0, 6))


class CutLink:
    """A link that breaks."""

    def __init__(self, link, after: int):
        self._link, self._after, self.peer = link, after, link.peer

    async def send(self, message):
        await self._link.send(message)

    async def receive(self):
        if self._after == 0:
            await self._link.close()
            raise UnavailableError("cut")
        self._after -= 1
        return await self._link.receive()

    async def half_close(self):
        await self._link.half_close()

    async def close(self):
        await self._link.close()


def test_streams_are_given_back_however_answers_end(tiny):
    """Answers that end, and answers that are left: none holds its stream, so an old connection can be closed."""

    async def run():
        async with serving(tiny, CONFIG) as (address, _), GrpcConnector(address) as connector:
            device = client(tiny, connector, lambda: RandomDrafter(1, tiny.vocabulary))
            for seed in range(6):
                await collect(device, _request(seed, 12))
                async with contextlib.aclosing(device.generate(_request(seed))) as events:
                    async for event in events:
                        if isinstance(event, Tokens):
                            break
            assert connector._channel.opened == 12
            assert connector._channel.links == 0

    asyncio.run(run())


def test_sixty_four_sessions_at_once_each_equal_plain_decoding(tiny):
    """64 devices on one cloud: all finish, each with its plain tokens, and all KV is free afterwards."""

    async def run():
        requests = [_request(seed, 40) for seed in range(64)]
        plain = [_plain(tiny, request) for request in requests]
        async with serving(tiny, CONFIG) as (address, engine), GrpcConnector(address) as connector:
            answers = [[*r.prompt, *p] for r, p in zip(requests, plain, strict=True)]
            results = await asyncio.gather(
                *(
                    collect(client(tiny, connector, lambda a=answer, n=n: OracleDrafter(n, 97, a, 0.3)), request)
                    for n, (request, answer) in enumerate(zip(requests, answers, strict=True))
                )
            )
            for (tokens, finished), expected in zip(results, plain, strict=True):
                assert tokens == expected
                assert finished.totals.cloud_steps + finished.totals.accepted == len(tokens)
        engine.pool.check()
        assert engine.pool.free + engine.pool.used == engine.pool.total
        assert engine.pool.used == 0

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(6))
def test_cut_streams_resume_exactly(tiny, seed):
    """Streams cut after any number of messages: the tokens are those of a stream that held."""

    async def run():
        request = _request(seed)
        plain = _plain(tiny, request)
        async with serving(tiny, CONFIG) as (address, engine), GrpcConnector(address) as connector:
            cutting = CuttingConnector(connector, seed, cuts=5)
            device = client(tiny, cutting, lambda: OracleDrafter(seed, 97, [*request.prompt, *plain], 0.3))
            tokens, finished = await collect(device, request)
            assert tokens == plain
            assert cutting.cuts == 0
            assert finished.totals.connects == 6
        assert engine.pool.used == 0

    asyncio.run(run())


def test_killed_cloud_process_is_replaced_and_the_text_is_the_same(tiny, tiny_folder, tmp_path):
    """The cloud dies by SIGKILL in mid-answer, another starts on its port: the answer goes on as if nothing was."""

    @contextlib.contextmanager
    def cloud(listen: str):
        ready = tmp_path / f"ready-{random.random()}"
        process = subprocess.Popen(
            [sys.executable, "-m", "outrider_cloud.cli", "serve", "--model", str(tiny_folder), "--threads", "1",
             "--listen", listen, "--ready-file", str(ready)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process, ready
        finally:
            process.kill()
            process.wait()

    async def address_in(ready) -> str:
        for _ in range(1200):
            if ready.exists():
                return ready.read_text()
            await asyncio.sleep(0.05)
        raise AssertionError("the cloud did not start")

    async def run():
        request = _request(11, 100)
        plain = _plain(tiny, request)
        with contextlib.ExitStack() as stack:
            process, ready = stack.enter_context(cloud("127.0.0.1:0"))
            address = await address_in(ready)
            tokens: list[int] = []
            broke = False
            async with GrpcConnector(address, connect_timeout_s=60) as connector:
                device = client(tiny, connector, lambda: RandomDrafter(1, 97))
                async for event in device.generate(request):
                    if isinstance(event, Tokens):
                        tokens += [token.id for token in event.tokens]
                    broke = broke or isinstance(event, Reconnecting)
                    if process is not None and len(tokens) > 10:
                        process.send_signal(signal.SIGKILL)
                        process.wait()
                        process = None
                        _, ready = stack.enter_context(cloud(address))
            assert broke
            assert tokens == plain

    asyncio.run(run())


def test_draining_service_finishes_what_is_open_and_refuses_what_is_new(tiny):
    """On stop: an open session is finished, a new one is told to go elsewhere, health says so before."""

    async def run():
        request = _request(5, 100)
        plain = _plain(tiny, request)
        service = serving(tiny, EngineConfig(kv_tokens=4096, hold_s=1.0), drain_s=30.0)
        address, _ = await service.__aenter__()
        async with (
            GrpcConnector(address) as connector,
            grpc.aio.insecure_channel(address) as channel,
            raw_stream(address) as lasting,
        ):
            # A session that waits for drafts and gets none: the drain is still on when the late one knocks.
            await lasting.write(open_message(tiny, [1], max_tokens=100, pace=pb.PACE_HOLD))
            health = health_pb2_grpc.HealthStub(channel)
            assert (
                await health.Check(health_pb2.HealthCheckRequest())
            ).status == health_pb2.HealthCheckResponse.SERVING
            tokens: list[int] = []
            stopping = None
            async for event in client(tiny, connector, lambda: RandomDrafter(5, 97)).generate(request):
                if isinstance(event, Tokens):
                    tokens += [t.id for t in event.tokens]
                if stopping is None and tokens:
                    stopping = asyncio.ensure_future(service.__aexit__(None, None, None))
                    await asyncio.sleep(0.1)
                    status = (await health.Check(health_pb2.HealthCheckRequest())).status
                    assert status == health_pb2.HealthCheckResponse.NOT_SERVING
                    async with raw_stream(address) as late:
                        with contextlib.suppress(grpc.aio.AioRpcError):  # it may be refused before it has said a word
                            await late.write(open_message(tiny, [1], max_tokens=1))
                        answers, code = await read_all(late)
                    assert code is grpc.StatusCode.UNAVAILABLE
                    assert not answers
            assert tokens == plain
            lasting.cancel()
            await stopping

    asyncio.run(run())


def test_session_that_outlives_the_drain_is_told_to_resume_elsewhere_and_does(tiny):
    """A stopping replica sends open sessions away with a retryable error; on the next replica the text goes on."""

    async def run():
        request = _request(7, 90)
        plain = _plain(tiny, request)
        hold = EngineConfig(kv_tokens=4096, hold_s=0.05)

        class Failover:
            """First one replica, then the other."""

            def __init__(self):
                self.links = []

            async def connect(self):
                return await (first if not self.links else second).connect()

            where = "a flaky link"

            def note(self, peer, *, alive):
                pass

        async with contextlib.AsyncExitStack() as stack:
            leaving = serving(tiny, hold, drain_s=0.0)
            address, _ = await leaving.__aenter__()
            other, _ = await stack.enter_async_context(serving(tiny, CONFIG))
            first = await stack.enter_async_context(GrpcConnector(address))
            second = await stack.enter_async_context(GrpcConnector(other))
            failover = Failover()
            tokens: list[int] = []
            reasons = []
            async for event in client(tiny, failover, lambda: RandomDrafter(3, 97)).generate(request):
                if isinstance(event, Tokens):
                    tokens += [t.id for t in event.tokens]
                elif isinstance(event, Reconnecting):
                    reasons.append(event.reason)
                if tokens and not failover.links:
                    failover.links.append("moved")
                    stopping = asyncio.ensure_future(leaving.__aexit__(None, None, None))
            await stopping
            assert tokens == plain
            assert any("stopping" in reason for reason in reasons), reasons

    asyncio.run(run())


def test_deadline_ends_the_answer_with_a_typed_error(tiny):
    """A deadline passes while the cloud holds for drafts: DeadlineError, and the KV is freed with the lease."""

    async def run():
        config = EngineConfig(kv_tokens=4096, hold_s=30.0, lease_s=0.1)
        async with serving(tiny, config) as (address, engine), GrpcConnector(address, deadline_s=0.5) as connector:

            class Silent:
                def propose(self, tokens, params, width):
                    import time

                    time.sleep(1.0)

            with pytest.raises(DeadlineError):
                await collect(client(tiny, connector, Silent), _request(1))
            await asyncio.sleep(0.5)
        assert engine.pool.used == 0

    asyncio.run(run())


def test_caller_that_walks_away_frees_the_session_at_once(tiny):
    """Leaving the iteration cancels in the cloud: nothing is kept for a return."""

    async def run():
        async with serving(tiny, EngineConfig(kv_tokens=4096, lease_s=60.0)) as (address, engine):
            async with GrpcConnector(address) as connector:
                events = client(tiny, connector, lambda: RandomDrafter(3, 97)).generate(_request(1, 100))
                async for event in events:
                    if isinstance(event, Tokens):
                        break
                await events.aclose()
            for _ in range(40):
                if not engine.sessions:
                    break
                await asyncio.sleep(0.05)
            assert not engine.sessions

    asyncio.run(run())


def test_lost_lease_cannot_be_used_by_another_device(tiny):
    """Who knows a session's id but not its lease gets nothing of it, broken or not."""

    async def run():
        async with serving(tiny, EngineConfig(kv_tokens=4096, hold_s=5.0)) as (address, _):
            opening = open_message(tiny, [1, 2, 3], pace=pb.PACE_HOLD, max_tokens=50)
            async with raw_stream(address) as owner:
                await owner.write(opening)
                lease = (await owner.read()).opened.lease
                owner.cancel()
            await asyncio.sleep(0.2)
            for wrong in (b"", b"\x00" * 16, lease[:-1]):
                opening.open.lease = wrong
                async with raw_stream(address) as thief:
                    await thief.write(opening)
                    answers, _ = await read_all(thief)
                    assert answers[-1].error.code == "session_exists"
            opening.open.lease = lease
            async with raw_stream(address) as back:
                await back.write(opening)
                assert (await back.read()).WhichOneof("body") == "opened"
                await back.write(pb.DecodeRequest(cancel=pb.Cancel()))
                await read_all(back)

    asyncio.run(run())
