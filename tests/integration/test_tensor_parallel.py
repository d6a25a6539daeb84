"""Several processes over one model: the same bits as one, and a clean end when one of them dies."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys

import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.generate import generate
from outrider_edge.link.failover import FailoverConnector
from outrider_edge.link.grpc_link import GrpcConnector
from outrider_edge.session.events import GenerateRequest, Reconnecting, Tokens
from outrider_shared.sampling import SamplingParams
from support.drafters import RandomDrafter
from support.service import client

ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
}  # fmt: skip
SERVE = ["-m", "outrider_cloud.cli", "serve", "--threads", "1", "--exact", "--buckets", "16", "--kv-tokens", "2048"]


@pytest.fixture(scope="module")
def found(tiny_folder, tmp_path_factory):
    """What four processes answered; see `support.ranks`."""
    store = tmp_path_factory.mktemp("ranks") / "store"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "support.ranks", str(tiny_folder), str(store), str(rank)],
            stdout=subprocess.PIPE, env=ENVIRONMENT,
        )
        for rank in range(4)
    ]  # fmt: skip
    try:
        told, _ = ranks[0].communicate(timeout=240)
        assert [rank.wait(60) for rank in ranks] == [0, 0, 0, 0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()
    return json.loads(told)


@pytest.mark.parametrize(("ranks", "shards"), [(4, 4), (2, 4), (2, 2)])
def test_ranks_give_the_bits_of_one_with_as_many_shards(found, ranks, shards):
    """Two heads of keys for four shards and 97 words: tokens, drafted tokens and every bit of the logits."""
    assert found[f"{ranks}x{shards}"] == found[f"1x{shards}"]


def test_ranks_give_the_tokens_of_the_whole_model(found):
    """Sums in another order change logits by a rounding, and no token here; drafts are accepted, so steps are few."""
    for name in ("4x4", "2x4", "2x2"):
        assert found[name]["plain"] == found["whole"]["plain"]
        assert found[name]["drafted"] == found["whole"]["plain"]
        assert max(found[name]["steps"]) <= 5


def test_a_graph_that_one_rank_cannot_record_is_replayed_by_none(found):
    """Both replay the first sum and launch the others, and each log says why."""
    here, there = found["captures"]
    expected = [["replayed", 21.0], ["launched", 41.0], ["launched", 61.0], ["replayed", 21.0]]
    assert here["ran"] == there["ran"] == expected
    assert here["recorded"] == there["recorded"] == 2  # what comes after is not tried by either
    assert there["reasons"] == ["operation not permitted when stream is capturing"]
    assert here["reasons"] == ["another rank of this model could not, and all have to do the same"]


async def _appears(path, process):
    for _ in range(1800):
        if path.exists():
            return path.read_text()
        assert process.poll() is None, "the cloud ended"
        await asyncio.sleep(0.05)
    raise AssertionError("the cloud did not start")


def _children(process) -> list[int]:
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in told.stdout.split()]


@contextlib.contextmanager
def _cloud(ready, model, *flags, launcher=(), end=signal.SIGKILL):
    """A service that writes its address to `ready` and its log beside it."""
    command = [sys.executable, *launcher, *SERVE, "--model", str(model), "--listen", "127.0.0.1:0"]
    with ready.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen([*command, "--ready-file", str(ready), *flags], env=ENVIRONMENT, stderr=log)
    try:
        yield process
    finally:
        process.send_signal(end)
        process.wait(60)


def test_ranks_that_torchrun_started_serve_the_same_tokens(tiny, tiny_folder, tmp_path):
    """As a scheduler starts them; at torchrun's end they are gone, too."""
    request = GenerateRequest((3, 2, 3), 40, SamplingParams(0.9, top_k=40, seed=3), ignore_eos=True)
    engine = build_engine(str(tiny_folder), EngineConfig(kv_tokens=2048, exact=True, buckets=(16,)), shards=2)
    plain = generate(engine, request.prompt, request.params, request.max_tokens, ignore_eos=True).tokens
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")

    async def run():
        with _cloud(tmp_path / "ready", tiny_folder, launcher=torchrun, end=signal.SIGTERM) as process:
            tokens: list[int] = []
            async with GrpcConnector(await _appears(tmp_path / "ready", process), connect_timeout_s=60) as connector:
                device = client(tiny, connector, lambda: RandomDrafter(1, 97))
                async for event in device.generate(request):
                    tokens += [token.id for token in event.tokens] if isinstance(event, Tokens) else []
            ranks = _children(process)
        assert tokens == plain
        assert len(ranks) == 2
        for rank in ranks:
            await _gone(rank)

    asyncio.run(run())


@pytest.mark.parametrize("victim", ["follower", "leader"])
def test_a_killed_rank_ends_the_service_and_the_answer_goes_on_elsewhere(tiny, tiny_folder, tmp_path, victim):
    """Two ranks serve an answer; one dies by SIGKILL in its middle. All ranks end, and a single process with two shards
    finishes the answer: the tokens are those of an undisturbed one."""
    request = GenerateRequest((3, 2, 3), 100, SamplingParams(0.9, top_k=40, seed=3), ignore_eos=True)
    config = EngineConfig(kv_tokens=2048, exact=True, buckets=(16,))
    engine = build_engine(str(tiny_folder), config, shards=2)
    plain = generate(engine, request.prompt, request.params, request.max_tokens, ignore_eos=True).tokens

    async def run():
        team_flags = ("--tensor-parallel", "2", "--pace-step-ms", "20")
        with (
            _cloud(tmp_path / "team", tiny_folder, *team_flags) as team,
            _cloud(tmp_path / "single", tiny_folder, "--shards", "2") as single,
        ):
            addresses = [await _appears(tmp_path / "team", team), await _appears(tmp_path / "single", single)]
            (follower,) = _children(team)
            tokens: list[int] = []
            broke = killed = False
            links = {address: GrpcConnector(address, connect_timeout_s=60) for address in addresses}
            async with FailoverConnector(links) as connector:
                device = client(tiny, connector, lambda: RandomDrafter(1, 97))
                async for event in device.generate(request):
                    if isinstance(event, Tokens):
                        tokens += [token.id for token in event.tokens]
                    broke = broke or isinstance(event, Reconnecting)
                    if len(tokens) > 10 and not killed:
                        killed = True
                        os.kill(team.pid if victim == "leader" else follower, signal.SIGKILL)
            assert broke
            assert tokens == plain
            status = await asyncio.to_thread(team.wait, 60)
            await _gone(follower)
            if victim == "follower":
                assert status == 1
                assert "rank 1 of 2 has ended" in (tmp_path / "team.log").read_text()
            else:
                assert status == -signal.SIGKILL

    asyncio.run(run())


async def _gone(pid):
    for _ in range(600):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if _is_zombie(pid):
            return
        await asyncio.sleep(0.05)
    raise AssertionError("a rank lives on without its leader")


def _is_zombie(pid) -> bool:
    told = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return told.stdout.strip().startswith("Z")
