"""Brings the ranks together: under torchrun those that it started, else this process starts the others itself.

Rank 0 owns the engine and the service. A rank that ends unasked ends all: rank 0 sends its sessions elsewhere and ends
with an error, the others end at once. Signals are rank 0's business; the others live as long as it does.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click
import torch
import torch.distributed as dist

from outrider_cloud.engine.peers import Alone, Peers
from outrider_cloud.parallel.peers import Channel, Followers, follow
from outrider_cloud.parallel.watch import Failure, open_listener, watch_leader, watch_members
from outrider_cloud.parallel.world import World
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_cloud.engine.runner import ModelRunner

# An idle service sends nothing; that a rank is lost, `watch` notices.
_NO_TIMEOUT = dt.timedelta(days=365)
_RENDEZVOUS = "OUTRIDER_RENDEZVOUS"
_END_S = 10.0
_TOKEN_BYTES = 16


class Team:
    """The processes that serve one model together.

    Args:
        world: Who we are.
        children: Ranks that this process started.
        meeting: Folder in which they meet, removed at the end.

    Attributes:
        failure: The first loss.
        peers: For the runner.
    """

    def __init__(
        self, world: World, children: Sequence[subprocess.Popen[bytes]] = (), meeting: Path | None = None
    ) -> None:
        self.world = world
        self._meeting = meeting
        self.failure = Failure(self.abandon)
        self.peers: Peers = Alone()
        self._children = children
        self._channel = Channel()
        self._followers: Followers | None = None
        for rank, child in enumerate(children, 1):
            threading.Thread(target=self._wait_for, args=(rank, child), daemon=True).start()

    @property
    def leads(self) -> bool:
        """Whether this process owns the engine."""
        return self.world.rank == 0

    def join(self, backend: str) -> None:
        """Connect all ranks; from here on a lost one is reported.

        Raises:
            UnavailableError: if not all come.
        """
        world = self.world
        if world.ranks == 1:
            return
        dist.init_process_group(
            backend,
            init_method=os.environ.get(_RENDEZVOUS, "env://"),
            rank=world.rank,
            world_size=world.ranks,
            timeout=_NO_TIMEOUT,
        )
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        greeting = torch.zeros(1 + _TOKEN_BYTES, dtype=torch.int32)
        if self.leads:
            listener, token = open_listener(host), secrets.token_bytes(_TOKEN_BYTES)
            greeting[0] = listener.getsockname()[1]
            greeting[1:] = torch.tensor(list(token), dtype=torch.int32)
            dist.broadcast(greeting, 0)
            watch_members(listener, token, world.ranks, self.failure)
            self.peers = self._followers = Followers(self._channel, self.failure)
        else:
            dist.broadcast(greeting, 0)
            watch_leader(host, int(greeting[0]), bytes(greeting[1:].tolist()), world.rank, self.failure)

    def follow(self, runner: ModelRunner) -> None:
        """A rank that does not lead: run its steps until it ends."""
        follow(self._channel, runner)
        self.failure.closing()

    def close(self) -> None:
        """End the other ranks, too."""
        self.failure.closing()
        if self._followers is not None:
            self._followers.stop()
        for child in self._children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_END_S)
        self._end_children()
        if dist.is_initialized():
            dist.destroy_process_group()

    def abandon(self) -> NoReturn:
        """End this process at once with an error: a collective may wait forever for a rank that is gone."""
        if self.leads:
            click.echo(f"outrider: {self.failure.reason}; this service has ended (start it again)", err=True)
        self._end_children()
        os._exit(1)

    def _wait_for(self, rank: int, child: subprocess.Popen[bytes]) -> None:
        status = child.wait()
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        self.failure.report(f"rank {rank} of {self.world.ranks} has ended {how}")

    def _end_children(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
        if self._meeting is not None:
            shutil.rmtree(self._meeting, ignore_errors=True)


def assemble(ranks: int, shards: int, *, ordered: bool, command: Sequence[str]) -> Team:
    """This process's place in its team; starts the others where no launcher did.

    Args:
        ranks: Processes asked for; under torchrun 1 stands for as many as it started.
        shards: Parts of the model; 0 is one per rank.
        ordered: Add them in order.
        command: Starts another rank, which finds its place in its environment.

    Raises:
        ConfigError: if the numbers do not fit together.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        rank, started = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if ranks not in {1, started}:
            raise ConfigError(f"--tensor-parallel {ranks}, but {started} processes were started", hint="let them agree")
        if rank:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
        return Team(World(rank, started, shards or started, ordered))
    world = World(0, ranks, shards or ranks, ordered)
    return Team(world, *_start(ranks, command)) if ranks > 1 else Team(world)


def local_device(name: str) -> str:
    """The card of this rank on its host: `cuda` becomes `cuda:N`."""
    local = os.environ.get("LOCAL_RANK", "0")
    return f"cuda:{local}" if name == "cuda" else name


def backend_of(device: str) -> str:
    """The backend for a device: gloo for what is on the CPU, NCCL for what is not."""
    return "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"


def _start(ranks: int, command: Sequence[str]) -> tuple[list[subprocess.Popen[bytes]], Path]:
    """Ranks 1 and up on this machine; they meet in a file, so there is no port that another may take first."""
    meeting = Path(tempfile.mkdtemp(prefix="outrider-ranks-"))
    ours = {
        _RENDEZVOUS: (meeting / "store").as_uri(),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "LOCAL_RANK": "0",
    }
    for name, value in ours.items():
        os.environ.setdefault(name, value)
    children = []
    for rank in range(1, ranks):
        places = {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
        children.append(subprocess.Popen(command, env={**os.environ, **places}))  # noqa: S603 - our own command
    return children, meeting
