"""The emulated link with real sockets, and sessions through it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.session.events import GenerateRequest, Pace
from outrider_shared.addresses import split_address
from outrider_shared.emulator import Fault, FaultKind, FaultSchedule, LinkPlan, LinkProfile, LinkProxy, precise_loop
from outrider_shared.emulator.control import LinkProcess, apply, request_of
from outrider_shared.errors import ConfigError
from outrider_shared.sampling import SamplingParams
from support.daemon import ENVIRONMENT
from support.drafters import OracleDrafter
from support.service import client, collect, serving


def run(coroutine):
    with contextlib.closing(precise_loop()) as loop:
        return loop.run_until_complete(asyncio.wait_for(coroutine, 60))


@contextlib.asynccontextmanager
async def echo():
    """A server that sends everything back; yields its address."""

    async def answer(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@contextlib.asynccontextmanager
async def dial(proxy: LinkProxy):
    host, _, port = proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


BAD = LinkProfile(rtt_s=0.01, jitter_s=0.005, up_bps=40e6, down_bps=40e6, loss=0.01, rto_min_s=0.005, queue_bytes=8192)


@pytest.mark.parametrize("profile", [LinkProfile(), BAD], ids=["wire", "bad"])
def test_all_bytes_come_through_in_order_and_are_counted(profile):
    """A large transfer both ways over any link: equal bytes, an end of stream behind them, exact counters."""
    sent = os.urandom(300_000)

    async def play():
        async with echo() as to, LinkProxy(to, profile, seed=3) as proxy, dial(proxy) as (reader, writer):
            writer.write(sent)
            writer.write_eof()
            assert await reader.read(-1) == sent
            return proxy.counters

    counters = run(play())
    assert (counters.up_bytes, counters.down_bytes) == (len(sent), len(sent))
    assert (counters.up_delivered, counters.down_delivered) == (len(sent), len(sent))
    assert (counters.connections, counters.cuts) == (1, 0)


def test_the_round_trip_is_never_shorter_than_asked_for():
    """Delay is added, whatever the machine's load adds on top."""

    async def play():
        loop = asyncio.get_running_loop()
        async with echo() as to, LinkProxy(to, LinkProfile(rtt_s=0.03)) as proxy, dial(proxy) as (reader, writer):
            for _ in range(5):
                started = loop.time()
                writer.write(b"ping")
                assert await reader.readexactly(4) == b"ping"
                assert loop.time() - started >= 0.029

    run(play())


def test_a_cut_is_a_reset_and_new_connections_work():
    """Cut: both sides see a reset, the counter says so, the next connection is as good as new."""

    async def play():
        async with echo() as to, LinkProxy(to) as proxy:
            async with dial(proxy) as (reader, writer):
                writer.write(b"x")
                await reader.readexactly(1)
                proxy.inject(Fault(0.0, FaultKind.CUT))
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)
            async with dial(proxy) as (reader, writer):
                writer.write(b"y")
                assert await reader.readexactly(1) == b"y"
            assert (proxy.counters.connections, proxy.counters.cuts) == (2, 1)

    run(play())


def test_half_open_swallows_bytes_and_keeps_the_sockets():
    """Half-open: writing goes on without an error, nothing comes back, nothing reaches the server."""

    async def play():
        async with echo() as to, LinkProxy(to) as proxy, dial(proxy) as (reader, writer):
            writer.write(b"x")
            await reader.readexactly(1)
            proxy.inject(Fault(0.0, FaultKind.HALF_OPEN))
            for _ in range(20):
                writer.write(bytes(1000))
                await writer.drain()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.2)
            assert not writer.is_closing()
            assert proxy.counters.up_delivered == 1
            assert proxy.counters.up_bytes == 20_001

    run(play())


def test_faults_and_changes_happen_at_their_time():
    """A schedule of a refusal and a cut, and a plan that changes the link: all are applied by the clock."""
    faults = FaultSchedule((Fault(0.0, FaultKind.REFUSE, 0.1), Fault(0.25, FaultKind.CUT)))
    plan = LinkPlan.of(LinkProfile(), {0.05: {"rtt_s": 0.001}, 0.1: {"rtt_s": 0.002}})

    async def play():
        async with echo() as to, LinkProxy(to, plan, faults) as proxy:
            await asyncio.sleep(0.01)
            async with dial(proxy) as (reader, _):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read(1) == b""
            await asyncio.sleep(0.12)
            assert proxy.profile.rtt_s == 0.002
            async with dial(proxy) as (reader, writer):
                writer.write(b"x")
                await reader.readexactly(1)
                with pytest.raises(ConnectionResetError):
                    await reader.readexactly(1)

    run(play())


def test_total_loss_lets_go_when_the_link_is_back():
    """100 % loss delivers nothing; after the change of profile the same bytes arrive."""

    async def play():
        async with echo() as to, LinkProxy(to, LinkProfile(loss=1.0)) as proxy, dial(proxy) as (reader, writer):
            writer.write(b"x")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 0.1)
            proxy.set_profile(LinkProfile(rto_min_s=0.01))
            assert await reader.readexactly(1) == b"x"

    run(play())


def test_server_that_is_not_there_resets_the_client():
    """Nobody listens behind the link: the client is reset instead of left waiting."""

    async def play():
        async with LinkProxy("127.0.0.1:1") as proxy, dial(proxy) as (reader, _):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read(1) == b""
            assert proxy.counters.cuts == 0

    run(play())


def test_port_in_use_is_a_clear_error():
    """Two proxies on one port: the second says so."""

    async def play():
        async with LinkProxy("127.0.0.1:1") as proxy:
            with pytest.raises(ConfigError, match=proxy.address):
                async with LinkProxy("127.0.0.1:1", listen=proxy.address):
                    pass

    run(play())


def test_link_in_a_process_of_its_own_obeys_and_counts():
    """`outrider link --control`: changes, faults and counters over pipes; a wrong field is told, not fatal."""

    async def play():
        async with echo() as to, LinkProcess(to, LinkProfile(rtt_s=0.001)) as link:
            host, _, port = link.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            counters = await link.counters()
            assert (counters.up_delivered, counters.down_delivered) == (5, 5)
            with pytest.raises(ConfigError, match="rtt_years"):
                await link.ask({"set": {"rtt_years": 1}})
            await link.set(LinkProfile())
            await link.ask({"fault": {"kind": "cut"}})
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            assert (await link.counters()).cuts == 1
            writer.close()
        assert link.status == 0

    run(play())


def test_ctrl_c_ends_a_process_that_obeys_without_a_word():
    """It reaches the whole terminal, the caller's process and this one, while connections are open."""
    command = [sys.executable, "-m", "outrider_shared.emulator.cli", "--control", "--listen", "127.0.0.1:0"]
    pipe = subprocess.PIPE
    with socket.create_server(("127.0.0.1", 0)) as server:
        to = f"127.0.0.1:{server.getsockname()[1]}"
        with subprocess.Popen(
            [*command, "--to", to], stdin=pipe, stdout=pipe, stderr=pipe, env=ENVIRONMENT, start_new_session=True
        ) as process:
            address = json.loads(process.stdout.readline())["address"]
            with socket.create_connection(split_address(address)), server.accept()[0]:
                process.send_signal(signal.SIGINT)
                _, told = process.communicate(timeout=60)
    assert (process.returncode, told) == (0, b"")


def test_a_process_whose_caller_is_cancelled_while_it_starts_ends():
    """While it is waited for to say where it listens."""

    class Cancelled(LinkProcess):
        async def _read(self):
            raise asyncio.CancelledError

    async def play():
        link = Cancelled("127.0.0.1:1", LinkProfile())
        with pytest.raises(asyncio.CancelledError):
            await link.__aenter__()
        assert link.status == 0

    run(play())


@pytest.mark.parametrize(
    "line",
    ["nope", "[1]", "3", '{"st": 3}', '{"set": 3}', '{"set": {"rtt_s": "x"}}', '{"fault": {}}', '{"fault": "cut"}',
     '{"fault": {"kind": ["cut"]}}', '{"fault": {"kind": "stall"}}',
     '{"fault": {"kind": "stall", "duration_s": "long"}}'],
)  # fmt: skip
def test_a_request_that_is_none_is_refused_with_a_sentence(line: str):
    """Over the pipes of `--control`; nothing is done then."""

    async def play():
        async with echo() as to, LinkProxy(to, LinkPlan()) as proxy:
            before = proxy.profile
            with pytest.raises(ConfigError, match=r"[a-z] .* [a-z]"):
                apply(proxy, request_of(line.encode()))
            assert proxy.profile == before

    run(play())


def test_link_command_refuses_what_makes_no_sense():
    """A rate that is no number, an unknown fault: a sentence, status 2, no traceback."""
    command = [sys.executable, "-m", "outrider_shared.emulator.cli", "--to", "127.0.0.1:1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    for wrong in (
        ["--rate-kbit", "fast"],
        ["--fault", "1:fire"],
        ["--change", "x:5"],
        ["--change", "5"],
        ["--listen", "nowhere"],
    ):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr


CONFIG = EngineConfig(kv_tokens=16384, lease_s=5.0, hold_s=0.05)
STALLS = LinkProfile(rtt_s=0.004, jitter_s=0.004, loss=0.05, rto_min_s=0.02, cut_every_s=0.25)


@pytest.mark.parametrize("pace", Pace)
@pytest.mark.parametrize("seed", range(3))
def test_session_over_a_link_with_cuts_and_stalls_gives_the_plain_tokens(tiny, seed, pace):
    """Connections that live for a quarter of a second, losses and stalls: the tokens are those of plain decoding."""
    request = GenerateRequest((seed, 2, 3), 110, SamplingParams(0.9, seed=seed), ignore_eos=True, pace=pace)
    engine = build_engine(tiny, CONFIG)
    plain = generate(engine, request.prompt, request.params, request.max_tokens, ignore_eos=True).tokens
    faults = FaultSchedule.draw(seed, 6, 1.5, (FaultKind.CUT, FaultKind.STALL, FaultKind.REFUSE), 0.1)

    async def play():
        async with serving(tiny, CONFIG) as (to, _), LinkProxy(to, STALLS, faults, seed) as proxy:
            await asyncio.sleep(0.02)
            async with GrpcConnector(proxy.address) as connector:
                answer = [*request.prompt, *plain]
                device = client(tiny, connector, lambda: OracleDrafter(seed, 97, answer, 0.3))
                tokens, _ = await collect(device, request)
            return tokens, proxy.counters

    tokens, counters = asyncio.run(asyncio.wait_for(play(), 60))
    assert tokens == plain
    assert counters.up_bytes > 0
    assert counters.down_bytes > 0
