"""A scenario, played to its end, and its figures."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.engine import Engine
from outrider_cloud.service.config import ServiceConfig
from outrider_cloud.service.directory import Directory
from outrider_cloud.service.handler import Service
from outrider_edge.draft.lookup import LookupDrafter
from outrider_edge.draft.mixed import MixedDrafter
from outrider_edge.link.padded_link import PaddedStreams
from outrider_edge.session.events import GenerateRequest, Tokens
from outrider_edge.session.generate import Client
from outrider_shared.calibration import Calibrations
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.sampling import SamplingParams
from support.virtual.clock import Passes, virtual_time
from support.virtual.cloud import Beside, EngineTask, ScriptedDrafts, ScriptedRunner, StepCost
from support.virtual.link import Network
from support.virtual.pair import Pair, PairDrafter, recorded

if TYPE_CHECKING:
    from outrider_edge.bench import methods
    from outrider_shared.padding import Padding

_LONG_S = 3600.0


@dataclass(frozen=True)
class Scenario:
    """What is played.

    Attributes:
        method: How the devices answer (`outrider_edge.bench.methods`).
        link: Of every device.
        step: Cost of a step of the target.
        draft_s: A device's draft pass.
        cloud_draft_s: A round of a draft model beside the target; 0 is none.
        sessions: Devices at the same time.
        answers: Of each device, one after the other; device d starts with recorded answer d * answers.
        max_tokens: Of an answer.
        config: The engine's.
        changes: (seconds, profile) by which the links change on the way.
        stack_s: What either end's software adds to a message.
        seed: Of the jitter, and of when devices start (within `stagger_s`).
        stagger_s: Devices start at random within this time.
        warm_calibration: Answers that each device gives before it is measured, so that it knows its drafts.
        cached: Whether prompts are in the cloud's prefix cache, as `outrider bench link` has them.
        first: Recorded answer that device 0 begins with.
        padding: Of every stream; None is none.
        rivals: Further devices with ways and links of their own, that ask until the others have all their answers.
        pair: The models.
    """

    method: methods.Method
    link: LinkProfile = field(default_factory=LinkProfile)
    step: StepCost = field(default_factory=lambda: StepCost(0.025))
    draft_s: float = 0.0015
    cloud_draft_s: float = 0.0
    sessions: int = 1
    answers: int = 12
    max_tokens: int = 64
    config: EngineConfig = field(default_factory=EngineConfig)
    changes: tuple[tuple[float, LinkProfile], ...] = ()
    stack_s: float = 0.0003
    seed: int = 0
    stagger_s: float = 0.0
    warm_calibration: int = 2
    cached: bool = False
    first: int = 0
    padding: Padding | None = None
    rivals: tuple[tuple[methods.Method, LinkProfile], ...] = ()
    pair: Pair = field(default_factory=recorded)


@dataclass
class AnswerSeen:
    """One answer as its device saw it.

    Attributes:
        times: (seconds, tokens so far) at each `Tokens` event, from the call on.
    """

    tokens: list[int]
    times: list[tuple[float, int]]
    started: float
    totals: object


def simulate(scenario: Scenario) -> dict:
    """Play a scenario; figures over all answers, as `outrider bench link` names them where it has them."""
    with virtual_time() as loop:
        return loop.run_until_complete(_play(scenario, loop))


async def _play(scenario: Scenario, loop) -> dict:
    runner = ScriptedRunner(scenario.pair, scenario.step, loop)
    rounds = ScriptedDrafts(scenario.pair, scenario.cloud_draft_s, loop) if scenario.cloud_draft_s else None
    engine = Engine(runner, scenario.config, loop.clock, rounds, Beside(loop))
    task = EngineTask(engine, loop)
    config = ServiceConfig(stall_timeout_s=_LONG_S, open_timeout_s=_LONG_S)
    service = Service(task, runner.loaded, config, Directory(10_000), scenario.config.max_nodes)
    networks = [Network(service, scenario.link, scenario.stack_s, scenario.seed + d) for d in range(scenario.sessions)]
    clients = [_client(scenario, network, runner) for network in networks]
    task.start()
    for client in clients:
        for number in range(scenario.warm_calibration):
            await _answer(scenario, client, 7919 + number, loop)
    if scenario.cached:
        brief = dataclasses.replace(scenario, max_tokens=1)
        await asyncio.gather(*(_device(brief, d, client, loop) for d, client in enumerate(clients)))
    base = dataclasses.replace(engine.stats)
    busy_s, up, down = task.busy_s, sum(n.up.bytes for n in networks), sum(n.down.bytes for n in networks)
    for at, profile in scenario.changes:
        for network in networks:
            loop.call_later(at, setattr, network, "profile", profile)
    started = loop.time()
    heard = [(len(n.up.seen), len(n.down.seen)) for n in networks]
    rivals = [
        asyncio.ensure_future(_rival(dataclasses.replace(scenario, method=method, link=link), service, runner, loop))
        for method, link in scenario.rivals
    ]
    seen = await asyncio.gather(*(_device(scenario, d, client, loop) for d, client in enumerate(clients)))
    taken_s = loop.time() - started
    for rival in rivals:
        assert not rival.done(), "a rival asks until the end"
        rival.cancel()
    await asyncio.gather(*rivals, return_exceptions=True)
    answers = [answer for device in seen for answer in device]
    task.stop()
    for answer in answers:
        assert answer.tokens, "an answer has tokens"
    tokens = sum(len(a.tokens) for a in answers)
    walls = [a.times[-1][0] for a in answers]
    return {
        "tokens": tokens,
        "tokens_per_s": tokens / sum(walls),
        "tokens_per_s_p50": statistics.median(len(a.tokens) / w for a, w in zip(answers, walls, strict=True)),
        "tokens_per_s_least": min(len(a.tokens) / w for a, w in zip(answers, walls, strict=True)),
        "aggregate_tokens_per_s": tokens / taken_s,
        "ttft_ms": 1e3 * statistics.mean(a.times[0][0] for a in answers),
        "steps_per_token": sum(a.totals.cloud_steps for a in answers) / tokens,
        "engine_steps": engine.stats.steps - base.steps,
        "rows_per_token": sum(a.totals.cloud_rows for a in answers) / tokens,
        "busy_ms_per_token": 1e3 * (task.busy_s - busy_s) / tokens,
        "busy_share": (task.busy_s - busy_s) / taken_s,
        "drafted_per_token": sum(a.totals.drafted for a in answers) / tokens,
        "accepted_per_token": sum(a.totals.accepted for a in answers) / tokens,
        "looked_up_per_token": sum(a.totals.cloud_lookups for a in answers) / tokens,
        "cloud_drafted_per_token": sum(a.totals.cloud_drafts for a in answers) / tokens,
        "edge_draft_ms_per_token": 1e3 * sum(a.totals.draft_s for a in answers) / tokens,
        "up_bytes_per_token": (sum(n.up.bytes for n in networks) - up) / tokens,
        "down_bytes_per_token": (sum(n.down.bytes for n in networks) - down) / tokens,
        "texts": [a.tokens for a in answers],
        "answers": answers,
        "heard": [
            tuple(
                [(t - started, size) for t, size in way.seen[before:]]
                for way, before in zip((n.up, n.down), b, strict=True)
            )
            for n, b in zip(networks, heard, strict=True)
        ],
    }


async def _device(scenario: Scenario, number: int, client: Client, loop) -> list[AnswerSeen]:
    if scenario.stagger_s:
        await asyncio.sleep(scenario.stagger_s * ((number * 0.618) % 1.0))
    first = scenario.first + number * scenario.answers
    return [await _answer(scenario, client, first + i, loop) for i in range(scenario.answers)]


async def _rival(scenario: Scenario, service: Service, runner: ScriptedRunner, loop) -> None:
    client = _client(scenario, Network(service, scenario.link, scenario.stack_s), runner)
    for number in itertools.count():
        await _answer(scenario, client, number, loop)


async def _answer(scenario: Scenario, client: Client, number: int, loop) -> AnswerSeen:
    method, prompt = scenario.method, scenario.pair.answers[number % len(scenario.pair.answers)].prompt
    request = GenerateRequest(
        prompt,
        scenario.max_tokens,
        SamplingParams(0.0, seed=number),
        pace=method.pace,
        cloud_drafts=method.cloud_drafts,
    )
    started, tokens, times = loop.time(), [], []
    last = None
    async for event in client.generate(request):
        if isinstance(event, Tokens):
            tokens += [token.id for token in event.tokens]
            times.append((loop.time() - started, len(tokens)))
        last = event
    if client.padded is not None:
        # The stream goes on to the end of its round.
        await client.padded.close()
    return AnswerSeen(tokens, times, started, last.totals)


def _client(scenario: Scenario, network: Network, runner: ScriptedRunner) -> Client:
    calibration, method = Calibrations(), scenario.method

    def new_drafter() -> MixedDrafter:
        return MixedDrafter(LookupDrafter(), PairDrafter(scenario.pair), calibration.survival_of)

    return Client(
        network, runner.loaded.vocabulary, runner.loaded.tokenizer_sha256, new_drafter if method.drafts else None,
        policy=method.policy, calibration=calibration, runner=Passes(scenario.draft_s),
        padded=None if scenario.padding is None else PaddedStreams(scenario.padding),
    )  # fmt: skip
