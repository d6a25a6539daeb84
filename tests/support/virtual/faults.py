"""A device between two clouds that fail in every way there is, in virtual time; what its user sees is checked.

Faults, at random moments and in any mixture: a cut that both ends notice, a connection that swallows everything without
a word, or everything in one direction, a stall as lost packets cause it, a cloud that dies and comes back with nothing,
a cloud that cannot be reached for a while, a device that reads slowly. Leases are long or short, so that a session that
comes back finds its KV or not; and each request is asked twice, so that the second is opened by the key of a log that
the cloud has, or has lost.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.engine import Engine
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.directory import Directory
from outrider_cloud.service.handler import Service
from outrider_cloud.service.memory import LogMemory
from outrider_edge.draft.lookup import LookupDrafter
from outrider_edge.draft.mixed import MixedDrafter
from outrider_edge.link.backoff import Backoff
from outrider_edge.link.failover import FailoverConnector
from outrider_edge.session.events import (
    Finished,
    GenerateRequest,
    Offline,
    Pace,
    Reconnecting,
    Retracted,
    Tokens,
    Unverified,
    Verified,
)
from outrider_edge.session.generate import Client
from outrider_edge.session.line import Liveness
from outrider_edge.session.offline import OfflineMode, OfflinePolicy
from outrider_shared.calibration import Calibrations
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.errors import UnavailableError
from outrider_shared.sampling import SamplingParams
from support.virtual.clock import Passes, virtual_time
from support.virtual.cloud import EngineTask, ScriptedRunner, StepCost
from support.virtual.link import Network, VirtualLink
from support.virtual.pair import PairDrafter, recorded

_REMEMBERED_TOKENS = 10_000
_SWALLOWED = {"swallow": {"up", "down"}, "mute": {"up"}, "deaf": {"down"}}
KINDS = ("cut", "swallow", "mute", "deaf", "stall", "restart", "away", "slow")


@dataclass
class Seen:
    """What the user of one answer saw.

    Attributes:
        verified: Committed text.
        unverified: Shown behind it, marked.
        ever_unverified, retracted, reconnects, offline: How often.
        reused: Tokens of the prompt that were not sent, the cloud having them by the key of a log.
        clouds: Addresses that served it.
    """

    verified: list[int] = field(default_factory=list)
    unverified: list[int] = field(default_factory=list)
    ever_unverified: int = 0
    retracted: int = 0
    reconnects: int = 0
    offline: list[float] = field(default_factory=list)
    finished: Finished | None = None
    reused: int = 0
    clouds: set[str] = field(default_factory=set)


def show(seen: Seen, event, expected, at: float = 0.0) -> None:
    """Apply an event as a display does, and check that nothing is shown as verified that is not the target's."""
    if isinstance(event, Verified):
        ids = [token.id for token in event.tokens]
        assert seen.unverified[: len(ids)] == ids, "verified tokens are the oldest unverified ones"
        del seen.unverified[: len(ids)]
        seen.verified += ids
    elif isinstance(event, Tokens):
        assert not seen.unverified, "new committed text comes only where nothing unverified stands before it"
        seen.verified += [token.id for token in event.tokens]
    elif isinstance(event, Unverified):
        seen.unverified += event.tokens
        seen.ever_unverified += len(event.tokens)
    elif isinstance(event, Retracted):
        assert event.count == len(seen.unverified), "what is taken back is all that is unverified"
        seen.unverified.clear()
        seen.retracted += event.count
    elif isinstance(event, Reconnecting):
        seen.reconnects += 1
    elif isinstance(event, Offline):
        seen.offline.append(at)
    elif isinstance(event, Finished):
        seen.finished, seen.reused = event, event.totals.prompt_reused
    assert seen.verified == expected[: len(seen.verified)], "verified text is the target's own"


class FaultyCloud:
    """One cloud that may die and come back."""

    def __init__(self, loop, pair, step: StepCost, lease_s: float = 5.0) -> None:
        self._loop, self._pair, self._step, self._lease_s = loop, pair, step, lease_s
        self.away_until = 0.0
        self._task: EngineTask | None = None
        self.restart()

    def restart(self) -> None:
        """All state is gone."""
        if self._task is not None:
            self._task.stop()
        config = EngineConfig(lease_s=self._lease_s)
        self.runner = ScriptedRunner(self._pair, self._step, self._loop)
        self._task = EngineTask(Engine(self.runner, config, self._loop.clock), self._loop)
        self._task.start()
        self.service = Service(
            self._task, self.runner.loaded, ServiceConfig(stall_timeout_s=5.0), Directory(1000), config.max_nodes,
            memory=LogMemory(_REMEMBERED_TOKENS),
        )  # fmt: skip

    def stop(self) -> None:
        self._task.stop()


class FaultyNetwork(Network):
    """The way of one device to one cloud."""

    def __init__(self, address: str, cloud: FaultyCloud, profile: LinkProfile, seed: int) -> None:
        super().__init__(cloud.service, profile, seed=seed)
        self.address, self.cloud = address, cloud
        self.slow_until = 0.0

    async def connect(self) -> FaultyLink:
        await asyncio.sleep(self.profile.rtt_s)
        if asyncio.get_running_loop().time() < self.cloud.away_until:
            raise UnavailableError(f"{self.address} is away")
        self.service = self.cloud.service
        link = FaultyLink(self)
        self.links.append(link)
        return link

    async def probe(self) -> None:
        await asyncio.sleep(self.profile.rtt_s)
        if asyncio.get_running_loop().time() < self.cloud.away_until:
            raise UnavailableError(f"{self.address} is away")

    def fault(self, kind: str, draw: random.Random) -> None:
        """Something happens now."""
        now = asyncio.get_running_loop().time()
        if kind == "stall":
            for direction in (self.up, self.down):
                direction.hold_until(now + draw.expovariate(1 / 0.4))
        elif kind == "slow":
            self.slow_until = now + draw.uniform(0.1, 1.0)
        elif kind in _SWALLOWED:
            for link in self.links:
                link.swallowing |= _SWALLOWED[kind]
        else:
            if kind == "away":
                self.cloud.away_until = now + draw.uniform(0.1, 4.0)
            for link in self.links:
                link.cut()
            if kind == "restart":
                self.cloud.restart()


class FaultyLink(VirtualLink):
    """A stream that may swallow everything, in the directions of `swallowing`."""

    def __init__(self, network: FaultyNetwork) -> None:
        self.swallowing: set[str] = set()
        super().__init__(network)
        self.peer = network.address

    async def send(self, message) -> None:
        if "up" not in self.swallowing:
            await super().send(message)

    async def _from_cloud(self, message) -> None:
        delay_s = self._network.slow_until - asyncio.get_running_loop().time()
        if delay_s > 0:
            await asyncio.sleep(delay_s)
        if "down" not in self.swallowing:
            await super()._from_cloud(message)


@dataclass(frozen=True)
class Schedule:
    """One random course of events, all from its seed.

    Attributes:
        faults: At most.
        within_s: Faults happen up to then.
    """

    seed: int
    faults: int = 6
    within_s: float = 1.0
    max_tokens: int = 48


def play(schedule: Schedule) -> tuple[list[Seen], list[int]]:
    """Ask twice through the faults; what was seen of each answer, and what the target says."""
    with virtual_time() as loop:
        return loop.run_until_complete(_play(schedule, loop))


async def _play(schedule: Schedule, loop) -> tuple[list[Seen], list[int]]:
    draw, pair = random.Random(schedule.seed), recorded()
    lease_s = draw.choice([0.05, 5.0])
    clouds = [FaultyCloud(loop, pair, StepCost(draw.choice([0.01, 0.04])), lease_s) for _ in range(2)]
    profile = LinkProfile(draw.choice([0.0, 0.02, 0.1]), draw.choice([0.0, 0.01]))
    networks = {f"cloud-{n}": FaultyNetwork(f"cloud-{n}", c, profile, schedule.seed) for n, c in enumerate(clouds)}
    for _ in range(draw.randint(1, schedule.faults)):
        at = draw.uniform(0.0, schedule.within_s)
        network, kind = draw.choice([*networks.values(), networks["cloud-0"]]), draw.choice(KINDS)
        loop.call_later(at, network.fault, kind, random.Random(draw.random()))
    if draw.random() < 0.4:  # total loss, or both clouds gone: one network after the other would always leave a way
        at, kind = draw.uniform(0.0, schedule.within_s), draw.choice(["away", "swallow", "stall"])
        for network in networks.values():
            loop.call_later(at, network.fault, "away", random.Random(draw.random()))
            loop.call_later(at, network.fault, kind, random.Random(draw.random()))
    number = draw.randrange(len(pair.answers))
    prompt = pair.answers[number].prompt
    expected = []
    while len(expected) < schedule.max_tokens and (not expected or expected[-1] != pair.eos):
        expected.append(pair.choose(number, len(prompt) + len(expected)))
    # Drafts in the middle of an outage are worth more than a fixed choice of mode: error is tested by itself.
    mode = draw.choice([OfflineMode.WAIT, OfflineMode.DRAFT, OfflineMode.DRAFT])
    calibration = Calibrations()
    jitter = random.Random(schedule.seed)
    async with FailoverConnector(networks, Backoff(0.1, 1.0, jitter), return_s=0.5) as connector:
        client = Client(
            connector, pair.vocabulary, "00" * 32,
            lambda: MixedDrafter(LookupDrafter(), PairDrafter(pair), calibration.survival_of),
            calibration=calibration, backoff=Backoff(0.05, 0.5, jitter),
            liveness=Liveness(0.3, draw.choice([0.8, 2.0])),
            offline=OfflinePolicy(mode, draw.choice([0.2, 0.6]), settle_s=1e6),
            eos=frozenset({pair.eos}), runner=Passes(draw.choice([0.0005, 0.004])),
        )  # fmt: skip
        pace = draw.choice([*Pace])
        request = GenerateRequest(prompt, schedule.max_tokens, SamplingParams(0.0, seed=number), pace=pace)
        answers = [await _answer(client, request, expected, connector, loop) for _ in range(2)]
    for cloud in clouds:
        cloud.stop()
    return answers, expected


async def _answer(client, request, expected, connector, loop) -> Seen:
    seen = Seen()
    async for event in client.generate(request):
        show(seen, event, expected, loop.time())
        seen.clouds.add(connector.current)
    return seen
