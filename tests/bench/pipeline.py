"""Decoding steps of one model over two ranks: stages of a pipeline, tensor parallel, and one process, in the same run.

    PYTHONPATH=cloud:edge:shared:tests python tests/bench/pipeline.py --out tests/bench/results/FILE.json

All compute the same layers with the engine's attention over the same keys, greedily, with as many threads in all. Ways:

    one rank              both threads in one process; and one thread alone
    tensor parallel       two ranks, `outrider_cloud.parallel`, sums by the library's all-reduce, as without --exact
    torch pipelining      two stages by `torch.distributed.pipelining` (GPipe): every step is drained, since the next
                          one needs its tokens; with one, two and four microbatches
    stages under way      two stages, and two groups of sessions that are never drained: while one is in the second
                          stage, the other is in the first

No `outrider bench` command, since the engine has no pipeline (docs/decisions/0037-no-pipeline.md).
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import torch
import torch.distributed as dist
from torch import multiprocessing, nn
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from transformers import AutoModelForCausalLM, LlamaConfig

from outrider_cloud.bench.machine import machine
from outrider_cloud.kernels.attention import GroupedAttention
from outrider_cloud.kernels.kv import KvPool
from outrider_cloud.kernels.layout import Segment
from outrider_cloud.model.attention import ATTENTION, StepContext
from outrider_cloud.model.probe import probe_layers
from outrider_cloud.parallel.shards import shard
from outrider_cloud.parallel.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

CONTEXT, WARM = 64, 2
RANKS = 2


@dataclass(frozen=True)
class Way:
    """How a step is computed, with how many groups of sessions."""

    name: str
    sessions: int
    groups: int = 1
    threads: int = 1


def ways() -> list[Way]:
    every = []
    for sessions in (1, 8, 32):
        every += [Way("one rank", sessions, threads=2), Way("one rank, one thread", sessions)]
        every += [Way("tensor parallel", sessions)]
        every += [Way("torch pipelining", sessions, groups) for groups in (1, 2, 4) if groups <= sessions]
        every += [Way("stages under way", sessions, 2)] if sessions > 1 else []
    return every


class Stage(nn.Module):
    """Some of a model's layers over their keys: tokens or what the stage before made, to that or to the next tokens."""

    def __init__(self, model: Any, layers: range, slots: int) -> None:
        super().__init__()
        self.specs = probe_layers(model)
        self.inner, self.head = model.model, model.lm_head
        self.first, self.last = layers.start == 0, layers.stop == len(self.specs)
        self.layers = [self.inner.layers[i] for i in layers]
        self.kv = KvPool(self.specs, slots, torch.float32)
        self.steps: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
        self.turn = 0

    def fill(self, heads: slice) -> None:
        """The same keys and values for everybody: random ones, of which a rank may hold some heads."""
        generator = torch.Generator().manual_seed(3)
        for layer, spec in enumerate(self.specs):
            whole = (KV_HEADS, self.kv.slots, spec.k_dim)
            self.kv.keys[layer].copy_(torch.randn(whole, generator=generator)[heads])
            self.kv.values[layer].copy_(torch.randn(whole, generator=generator)[heads])

    def plan(self, sessions: range, length: int) -> None:
        """Another group's next step: a row for each session behind `length` tokens."""
        room = self.kv.slots // MOST_SESSIONS
        segments = []
        for session in sessions:
            slots = np.arange(session * room, session * room + length + 1)
            segments.append(Segment(slots[:-1], slots[-1:], [-1]))
        own = torch.tensor([int(segment.slots[0]) for segment in segments])
        positions = torch.full((1, len(segments)), length)
        self.steps.append((positions, own, GroupedAttention().plan(segments, len(segments))))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """[rows, 1] tokens or [rows, 1, width] to [rows, 1, width] or [rows, 1, vocabulary], groups in their order."""
        positions, slots, plan = self.steps[self.turn % len(self.steps)]
        self.turn += 1
        hidden = self.inner.embed_tokens(given.view(1, -1)) if self.first else given.view(1, given.shape[0], -1)
        rotated = self.inner.rotary_emb(hidden, positions)
        context = StepContext(self.kv, slots, plan, self.specs)
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotated, outrider=context)
        if self.last:
            hidden = self.head(self.inner.norm(hidden))
        return hidden.view(given.shape[0], 1, -1)


KV_HEADS, MOST_SESSIONS = 4, 32


def shape() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=16384, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=KV_HEADS, max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


class Rank:
    """One of two processes, with the model whole, cut, and in stages."""

    def __init__(self, rank: int, steps: int) -> None:
        self.rank, self.count = rank, steps
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(shape(), attn_implementation=ATTENTION).eval().requires_grad_(False)
        layers, slots = model.config.num_hidden_layers, MOST_SESSIONS * (CONTEXT + steps + WARM + 1)
        self.width, self.vocabulary = model.config.hidden_size, model.config.vocab_size
        cut = copy.deepcopy(model)
        shard(cut, World(rank, RANKS, RANKS, ordered=False))
        half = range(rank * layers // RANKS, (rank + 1) * layers // RANKS)
        own = KV_HEADS // RANKS
        self.whole, self.cut = Stage(model, range(layers), slots), Stage(cut, range(layers), slots)
        self.stage = Stage(model, half, slots)
        self.whole.fill(slice(None))
        self.cut.fill(slice(rank * own, (rank + 1) * own))
        self.stage.fill(slice(None))

    def run(self, way: Way) -> dict[str, Any]:
        """Seconds of the steps after the first, processor seconds of this rank, and the tokens that were chosen."""
        torch.set_num_threads(way.threads)
        each = way.sessions // way.groups
        groups = [range(g * each, (g + 1) * each) for g in range(way.groups)]
        step: Callable[[int, list[torch.Tensor]], list[torch.Tensor]]
        if way.name == "torch pipelining":
            step = self._drained(groups)
        elif way.name == "stages under way":
            return self._under_way(groups)
        else:
            stage = self.cut if way.name == "tensor parallel" else self.whole
            step = self._alone(stage, groups, idle=stage is self.whole and self.rank > 0)
        tokens = [torch.arange(group.start, group.stop)[:, None] for group in groups]
        dist.barrier()
        for number in range(WARM + self.count):
            if number == WARM:
                started, busy = time.perf_counter(), time.process_time()
            tokens = step(number, tokens)
        return self._told(started, busy, tokens)

    def _told(self, started: float, busy: float, tokens: list[torch.Tensor]) -> dict[str, Any]:
        told = {"wall_s": time.perf_counter() - started, "busy_s": time.process_time() - busy}
        dist.barrier()
        return {**told, "tokens": torch.cat(tokens).flatten().tolist()}

    def _alone(self, stage: Stage, groups: list[range], *, idle: bool) -> Callable[..., list[torch.Tensor]]:
        def step(number: int, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
            if idle:
                return tokens
            stage.steps.clear()
            stage.plan(groups[0], CONTEXT + number)
            return [stage(tokens[0]).argmax(-1)]

        return step

    def _drained(self, groups: list[range]) -> Callable[..., list[torch.Tensor]]:
        rows, device = len(groups[0]), torch.device("cpu")
        tokens, hidden = torch.zeros(rows, 1, dtype=torch.long), torch.zeros(rows, 1, self.width)
        ends = (tokens, hidden) if self.rank == 0 else (hidden, torch.zeros(rows, 1, self.vocabulary))
        piped = PipelineStage(self.stage, self.rank, RANKS, device, input_args=ends[0], output_args=ends[1])
        schedule = ScheduleGPipe(piped, len(groups))

        def step(number: int, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
            self.stage.steps.clear()
            for group in groups:
                self.stage.plan(group, CONTEXT + number)
            self.stage.turn = 0
            chosen = torch.cat(tokens)
            if self.rank == 0:
                schedule.eval(chosen)
            else:
                chosen = schedule.eval().argmax(-1)
            dist.broadcast(chosen, RANKS - 1)
            return list(chosen.split(rows))

        return step

    def _under_way(self, groups: list[range]) -> dict[str, Any]:
        """Each rank goes through the groups in turn; tokens come back while another group computes."""
        rows, sent = len(groups[0]), []
        tokens = [torch.arange(group.start, group.stop)[:, None] for group in groups]
        dist.barrier()
        for number in range(WARM + self.count):
            if number == WARM:
                started, busy = time.perf_counter(), time.process_time()
            for g, group in enumerate(groups):
                self.stage.steps.clear()
                self.stage.plan(group, CONTEXT + number)
                if self.rank == 0:
                    if number:
                        dist.recv(tokens[g], RANKS - 1)
                    made = self.stage(tokens[g])
                else:
                    hidden = torch.empty(rows, 1, self.width)
                    dist.recv(hidden, 0)
                    tokens[g] = made = self.stage(hidden).argmax(-1)
                sent.append((dist.isend(made, RANKS - 1 - self.rank), made))
        if self.rank == 0:
            for token in tokens:
                dist.recv(token, RANKS - 1)
        for work, _ in sent:
            work.wait()
        return self._told(started, busy, tokens)


@torch.no_grad()
def work(rank: int, meeting: str, steps: int, rounds: int) -> None:
    """A process: every way in turn, again and again; rank 0 writes what it saw."""
    dist.init_process_group("gloo", init_method=f"file://{meeting}/store", rank=rank, world_size=RANKS)
    here = Rank(rank, steps)
    seen: dict[Way, list[dict[str, Any]]] = {way: [] for way in ways()}
    for _ in range(rounds):
        for way, runs in seen.items():
            runs.append(here.run(way))
    told = [[way.__dict__, runs] for way, runs in seen.items()]
    Path(meeting, f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def summary(first: list[Any], second: list[Any], steps: int) -> list[dict[str, Any]]:
    """Tokens per second as median, least and most; processor time of both ranks per token; whether tokens agree."""
    expected = {way["sessions"]: runs[0]["tokens"] for way, runs in first if way["name"] == "one rank"}
    told = []
    for (way, runs), (_, others) in zip(first, second, strict=True):
        made = way["sessions"] * steps
        rates = [made / run["wall_s"] for run in runs]
        busy = statistics.median(a["busy_s"] + b["busy_s"] for a, b in zip(runs, others, strict=True))
        told.append({
            **way, "tokens_per_s": round(statistics.median(rates), 1), "low": round(min(rates), 1),
            "high": round(max(rates), 1), "processor_ms_per_token": round(1e3 * busy / made, 2),
            "same_tokens_as_one_rank": runs[0]["tokens"] == expected[way["sessions"]],
        })  # fmt: skip
    return told


@click.command()
@click.option("--steps", type=click.IntRange(2), default=12, show_default=True, help="Steps that count, of a run.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Runs of each way, in turn.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False))
def main(steps: int, rounds: int, out: Path | None) -> None:
    """Measure, and tell as JSON."""
    # Threads that wait do not spin: on a shared machine they would take the processor from those they wait for.
    for name, value in (("GLOO_SOCKET_IFNAME", "lo"), ("OMP_WAIT_POLICY", "passive"), ("GOMP_SPINCOUNT", "0")):
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as meeting:
        multiprocessing.spawn(work, (meeting, steps, rounds), nprocs=RANKS)
        first, second = (json.loads(Path(meeting, f"{rank}.json").read_text()) for rank in range(RANKS))
    config = shape()
    told = {
        "bench": "pipeline", "machine": {**machine(), "threads": 2},
        "model": {name: getattr(config, name) for name in ("vocab_size", "hidden_size", "intermediate_size",
                  "num_hidden_layers", "num_attention_heads", "num_key_value_heads")},
        "dtype": "float32", "context": CONTEXT, "steps": steps, "rounds": rounds,
        "results": summary(first, second, steps),
    }  # fmt: skip
    text = json.dumps(told, indent=1)
    click.echo(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
