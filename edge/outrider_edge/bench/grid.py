"""Conducts the run: per engine the baselines are tuned without a link, then every cell of the grid is measured.

Rules:
    * Cells and loads that an earlier run has kept are taken over.
    * Within a cell all methods answer the same requests; for each request they take turns to go first.
    * Every prompt is in the cloud's prefix cache before anything is timed.
    * Co-located speculation runs the method, of all that draft, that was fastest beside the cloud on the same requests.
    * Synchronous speculation: all eight lengths are run without a link. Its answers are the same at any round trip, so
      the time there is the time here and a round trip per exchange; in each cell those lengths that this ranks
      first are measured, and the fastest counts.
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from outrider_edge.bench import methods
from outrider_edge.bench.away import away
from outrider_edge.bench.load import Crowd, loaded
from outrider_edge.bench.measure import Contestant, Sample
from outrider_edge.bench.processes import Identity, Served, cloud_flags, serving
from outrider_edge.bench.saved import described
from outrider_edge.bench.summary import ratios, step_seconds, summarise
from outrider_edge.device import Device
from outrider_shared.emulator.control import LinkProcess
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from outrider_edge.bench.methods import Method
    from outrider_edge.bench.saved import Saved
    from outrider_edge.session.events import GenerateRequest

_DEADLINE_S = 120.0
NONE = "none"


@dataclass(frozen=True)
class Grid:
    """What is measured.

    Attributes:
        requests: The same for all.
        links: Cells of one engine.
        steps_ms: Engines: least time of a step, 0 is the model's own.
        model: Of the cloud.
        draft: Pack.
        cloud_draft: Model folder of the draft in the cloud for the variants with one; `none` leaves them out.
        threads: CPU threads of a step.
        tune: Requests that the baselines are tuned on.
        candidates: Lengths of synchronous speculation measured in each cell.
        seed: Of the emulated links.
        identity: With it, all connections use TLS.
        crowds: Of devices at once, measured on each link besides the cells.
        row_budget: Most rows of a step; 0 is the cloud's default.
        dead: Whether a link that loses everything is tried, too.
        folder: For files of the run.
        saved: Cells that an earlier run measured, and where each is kept as it is done.
        tell: Hears about progress.
        advance: Is called with each answer of a cell.
    """

    requests: Sequence[GenerateRequest]
    links: Sequence[LinkProfile]
    steps_ms: Sequence[float]
    model: str
    draft: str
    cloud_draft: str
    threads: int
    tune: int
    candidates: int
    seed: int
    identity: Identity | None
    crowds: Sequence[Crowd]
    row_budget: int
    dead: bool
    folder: Path
    saved: Saved
    tell: Callable[[str], None]
    advance: Callable[[int], None]

    @property
    def answers(self) -> int:
        """Of a cell and of what is measured on its link besides."""
        return self.cell_answers + sum(map(self.crowd_answers, self.crowds))

    @property
    def cell_answers(self) -> int:
        """Of a cell."""
        return len(self.requests) * (2 + self.candidates + len(self.ours()))

    def crowd_answers(self, crowd: Crowd) -> int:
        """Of many devices, by all methods."""
        return crowd.sessions * crowd.answers * crowd.rounds * (2 + len(self.ours()))

    def ours(self) -> list[Method]:
        """What is measured of ours."""
        return [*methods.ours(), *(methods.ours_with_draft() if self.cloud_draft != NONE else [])]

    async def run(self) -> list[dict[str, Any]]:
        """Measure all engines in turn."""
        return [await self._engine(step_ms) for step_ms in self.steps_ms]

    async def _engine(self, step_ms: float) -> dict[str, Any]:
        if self.saved.is_whole(step_ms):
            self.advance(self.answers * len(self.links))
            return self.saved.engine(step_ms, self.links)
        tls = [] if self.identity is None else self.identity.server_flags
        rows = ["--row-budget", str(self.row_budget)] if self.row_budget else []
        flags = [*cloud_flags(self.model, self.threads, step_ms), *rows, *tls]
        async with contextlib.AsyncExitStack() as stack:
            cloud = drafting = await _cloud(stack, flags)
            if self.cloud_draft != NONE:
                drafting = await _cloud(stack, [*flags, "--draft", self.cloud_draft])
            bench = _Engine(self, cloud, drafting, stack)
            await bench.tune()
            await bench.connect()
            for profile in self.links:
                if self.saved.cell(step_ms, profile) is None:
                    self.saved.keep(step_ms, profile, await bench.cell(profile))
                else:
                    self.advance(self.cell_answers)
            more = await bench.beyond(step_ms)
        described = {
            "engine": f"paced, {step_ms:g} ms a step" if step_ms else "own step of the model",
            "step_ms": step_ms or None,
            "step_ms_of_plain_streaming": bench.step_s * 1e3,
            "colocated_method": bench.colocated.name,
            "tuning": bench.tuning,
            **more,
        }
        self.saved.keep_engine(step_ms, described)
        return self.saved.engine(step_ms, self.links)


async def _cloud(stack: contextlib.AsyncExitStack, flags: Sequence[str]) -> Served:
    metrics = f"127.0.0.1:{free_port()}"
    served = await stack.enter_async_context(serving("outrider_cloud.cli", *flags, "--metrics", metrics))
    return replace(served, metrics=metrics)


class _Engine:
    """One cloud process, one more with a draft model, and everybody connected to them."""

    def __init__(self, grid: Grid, cloud: Served, drafting: Served, stack: contextlib.AsyncExitStack) -> None:
        self._grid, self._cloud, self._drafting, self._stack = grid, cloud, drafting, stack
        self.tuning: dict[str, Any] = {}
        self.step_s = 0.0
        self.colocated = methods.plain()
        self._contestants: dict[str, Contestant] = {}
        self._openings: dict[str, list[Sample]] = {}
        self._links: list[LinkProcess] = []

    async def tune(self) -> None:
        """Fill the prefix cache, time a step, and rank what drafts, all without a link."""
        grid = self._grid
        plain = await self._beside(methods.plain())
        for cloud in {self._cloud, self._drafting}:
            filling = await self._beside(methods.plain(), cloud)
            for request in grid.requests:
                await filling.answer(replace(request, max_tokens=1))
        self.step_s = step_seconds([await plain.answer(request) for request in grid.requests[: grid.tune]])
        for how in methods.drafted():
            contestant = await self._beside(how)
            samples = [await contestant.answer(request) for request in grid.requests[: grid.tune]]
            tokens, wall_s = sum(len(s.token_ids) for s in samples), sum(s.wall_s for s in samples)
            self.tuning[how.name] = {
                "tokens_per_s": tokens / wall_s,
                "wall_s": wall_s,
                "cloud_steps": sum(s.steps for s in samples),
                "draft_ms_per_node": 1e3 * sum(s.draft_s for s in samples) / max(1, sum(s.drafted for s in samples)),
            }
        fastest = max(self.tuning, key=lambda name: float(self.tuning[name]["tokens_per_s"]))
        self.colocated = methods.method(fastest)
        grid.tell(f"step {self.step_s * 1e3:.1f} ms; fastest beside the cloud: {fastest}")

    async def connect(self) -> None:
        """Put the links in place, the relay behind one of them, and open each method's device."""
        grid, cloud = self._grid, self._cloud
        log = grid.folder / f"relay-{cloud.pid}.jsonl"
        flags = ["--cloud", cloud.address, "--draft", grid.draft, "--method", self.colocated.name, "--log", str(log)]
        if grid.identity is not None:
            flags += ["--tls-ca", str(grid.identity.certificate), *grid.identity.server_flags]
        relay = await self._stack.enter_async_context(serving("outrider_edge.bench.relay", *flags))
        direct, drafting, behind = [
            await self._stack.enter_async_context(LinkProcess(to.address, LinkProfile(), grid.seed))
            for to in (cloud, self._drafting, relay)
        ]
        self._links = [direct, drafting, behind]
        lengths = [methods.chain(length) for length in methods.LENGTHS]
        for how in (methods.plain(), *lengths, *grid.ours()):
            link, served = (drafting, self._drafting) if how.draft_cloud else (direct, cloud)
            self._contestants[how.name] = Contestant(how, await self._device(how, link.address), link, served)
        how = replace(methods.plain(), name="colocated")
        device = await self._device(how, behind.address)
        self._contestants["colocated"] = Contestant(how, device, behind, cloud, log)
        await self._warm()

    async def _warm(self) -> None:
        """Bring connections and their header tables into their steady state, and see what a prompt alone costs."""
        for contestant in self._contestants.values():
            await contestant.answer(replace(self._grid.requests[0], max_tokens=1))
        for name in ("plain", "colocated"):
            alone = [replace(request, max_tokens=1) for request in self._grid.requests]
            self._openings[name] = [await self._contestants[name].answer(request) for request in alone]

    async def cell(self, profile: LinkProfile) -> dict[str, Any]:
        """Measure one link."""
        grid = self._grid
        for link in self._links:
            await link.set(profile)
        lengths = self._ranked(profile.rtt_s)[: grid.candidates]
        names = ["plain", "colocated", *lengths, *(how.name for how in grid.ours())]
        samples: dict[str, list[Sample]] = {name: [] for name in names}
        for number, request in enumerate(grid.requests):
            for place in range(len(names)):
                name = names[(place + number) % len(names)]
                samples[name].append(await self._contestants[name].answer(request))
                grid.advance(1)
        figures = {
            name: summarise(
                samples[name],
                self._openings.get(name, self._openings["plain"]),
                samples["plain"],
                drafts_in_cloud=name == "colocated",
            )
            for name in names
        }
        best = max(lengths, key=lambda name: float(figures[name]["tokens_per_s"]))
        figures["sync"] = {**figures[best], "method": best}
        result = {"link": described(profile), "methods": figures, "ratios": ratios(figures)}
        told = ", ".join(f"{n} {figures[n]['tokens_per_s']:.1f}" for n in figures if not n.startswith("chain"))
        grid.tell(f"rtt {profile.rtt_s * 1e3:g} ms: tokens/s {told} ({best})")
        return result

    async def beyond(self, step_ms: float) -> dict[str, Any]:
        """What is asked for besides the cells: many devices at once, a link that is dead."""
        grid, found = self._grid, dict[str, Any]()
        for profile, crowd in itertools.product(grid.links, grid.crowds):
            load = grid.saved.load(step_ms, profile, crowd.sessions)
            if load is None:
                load = await self._load(profile, crowd)
                grid.saved.keep_load(step_ms, profile, crowd.sessions, load)
            else:
                grid.advance(grid.crowd_answers(crowd))
            found.setdefault("high_load", []).append(load)
        if grid.dead:
            profile = replace(grid.links[0], loss=0.0)
            found["dead_link"] = {"rtt_ms": profile.rtt_s * 1e3, "modes": await self._away(profile)}
        return found

    async def _load(self, profile: LinkProfile, crowd: Crowd) -> dict[str, Any]:
        for link in self._links:
            await link.set(profile)
        names = ["plain", "colocated", *(how.name for how in self._grid.ours())]
        contestants = {name: self._contestants[name] for name in names}
        figures = await loaded(contestants, self._grid.requests, crowd, self._grid.advance)
        told = ", ".join(f"{n} {f['cloud_busy_ms_per_token']:.2f}" for n, f in figures.items())
        self._grid.tell(f"{crowd.sessions} devices, rtt {profile.rtt_s * 1e3:g} ms: busy ms per token {told}")
        rows = {"rows": self._grid.row_budget} if self._grid.row_budget else {}
        return {**asdict(crowd), **rows, "link": described(profile), "methods": figures}

    async def _away(self, profile: LinkProfile) -> dict[str, Any]:
        grid, link = self._grid, self._links[0]
        tls = None if grid.identity is None else grid.identity.client
        await link.set(profile)
        # Long enough to be in the middle of.
        request = replace(grid.requests[0], ignore_eos=True)
        expected = (await self._contestants["plain"].answer(request)).token_ids
        modes = await away(
            lambda offline: Device.open(link.address, grid.draft, tls=tls, offline=offline, deadline_s=_DEADLINE_S),
            link, profile, request, expected,
        )  # fmt: skip
        told = ", ".join(f"{name} after {mode['told_s']:.2f} s" for name, mode in modes.items() if mode["told_s"])
        grid.tell(f"a dead link is told: {told}")
        return modes

    def _ranked(self, rtt_s: float) -> list[str]:
        """Lengths of synchronous speculation, by the time that they should take at a round-trip time."""
        names = [methods.chain(length).name for length in methods.LENGTHS]
        return sorted(names, key=lambda n: float(self.tuning[n]["wall_s"] + self.tuning[n]["cloud_steps"] * rtt_s))

    async def _beside(self, how: Method, cloud: Served | None = None) -> Contestant:
        cloud = cloud or self._cloud
        return Contestant(how, await self._device(how, cloud.address), None, cloud)

    async def _device(self, how: Method, address: str) -> Device:
        grid = self._grid
        tls = None if grid.identity is None else grid.identity.client
        device = Device.open(address, grid.draft, tls=tls, policy=how.policy, deadline_s=_DEADLINE_S)
        return await self._stack.enter_async_context(device)
