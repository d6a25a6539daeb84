"""Speed and memory of the engine: steps, rows and tokens per second, and what our code adds to the model's forward.

The baseline is transformers' own `generate` on the same weights in the same run (one session, dynamic KV cache, SDPA):
the usual way to decode on a CPU.
"""

from __future__ import annotations

import itertools
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from outrider_cloud.bench.machine import machine, peak_memory_bytes
from outrider_cloud.build import build_engine
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.engine.events import Request
from outrider_cloud.model.loading import bundled_model, load_model
from outrider_shared.ids import SessionId
from outrider_shared.packing import pack_tokens
from outrider_shared.sampling import SamplingParams
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outrider_cloud.engine.engine import Engine
    from outrider_cloud.model.loading import LoadedModel


# Noise that was drawn for a seed is remembered: no two sessions have the same.
_SEEDS = itertools.count()


@dataclass(frozen=True, slots=True)
class Case:
    """One load.

    Attributes:
        sessions: At once.
        drafts: Draft rows that each session has ready in every step (never accepted: a pure cost).
        exact: Bit-exact rows.
        buckets: Row counts of steps in exact mode.
        temperature: 0 is greedy.
    """

    sessions: int
    drafts: int = 0
    exact: bool = False
    buckets: tuple[int, ...] = ()
    temperature: float = 0.0


CASES = (
    *(Case(n) for n in (1, 8, 32, 64)),
    *(Case(n, temperature=0.8) for n in (1, 8)),
    *(Case(1, drafts=k) for k in (1, 3, 7, 15)),
    *(Case(1, drafts=k, exact=True) for k in (1, 3, 7, 15)),
    *(Case(n, exact=True) for n in (1, 8, 32, 64)),
    *(Case(n, exact=True, buckets=(16,)) for n in (1, 8)),
)


def bench_engine(model: str, steps: int, context: int, repeats: int) -> Iterator[dict[str, Any]]:
    """Measure each case; yields one result at a time, the baseline first, then a closing summary.

    Args:
        model: Hugging Face folder or `bundled`.
        steps: Decoding steps per measurement.
        context: Tokens of each prompt.
        repeats: Measurements of each case; the median is told.
    """
    loaded = load_model(model)
    context = min(context, loaded.context_length - steps - 20)
    baseline = _transformers(model, loaded, context, steps, repeats)
    yield baseline
    for case in CASES:
        runs = [_run(loaded, case, context, steps) for _ in range(repeats)]
        result = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        result["ratio_to_transformers"] = result["tokens_per_s"] / baseline["tokens_per_s"]
        yield {"case": vars_of(case), **result}
    yield {"machine": machine(), "model": loaded.name, "context": context, "peak_memory_bytes": peak_memory_bytes()}


def vars_of(case: Case) -> dict[str, Any]:
    """A case as a JSON object."""
    return {name: getattr(case, name) for name in Case.__slots__}


def _run(loaded: LoadedModel, case: Case, context: int, steps: int) -> dict[str, float]:
    config = EngineConfig(
        exact=case.exact,
        buckets=case.buckets or EngineConfig().buckets,
        kv_tokens=(context + steps * 2 + 64) * case.sessions + 1024,
        max_draft_rows=max(1, case.drafts),
    )
    engine = build_engine(loaded, config)
    generator = np.random.default_rng(0)
    for number in range(case.sessions):
        prompt = tuple(generator.integers(5, loaded.vocabulary, context).tolist())
        params = SamplingParams(case.temperature, seed=next(_SEEDS))
        engine.open(Request(SessionId(f"bench{number:08d}"), prompt, steps * 2 + 8, params, ignore_eos=True), _ignore)
    while any(s.sure_rows > 1 or not s.blocks for s in engine.sessions.values()):
        engine.step()
    _measure(engine, case, 2)
    before, committed, rows = engine.stats.forward_s, engine.stats.committed, engine.stats.rows
    durations = _measure(engine, case, steps)
    total = sum(durations)
    forward = engine.stats.forward_s - before
    return {
        "step_ms_p50": statistics.median(durations) * 1e3,
        "steps_per_s": len(durations) / total,
        "rows_per_s": (engine.stats.rows - rows) / total,
        "tokens_per_s": (engine.stats.committed - committed) / total,
        "overhead_share": 1.0 - forward / total,
    }


def _measure(engine: Engine, case: Case, steps: int) -> list[float]:
    durations = []
    for _ in range(steps):
        if case.drafts:
            _draft(engine, case.drafts)
        started = time.perf_counter()
        engine.step()
        durations.append(time.perf_counter() - started)
    return durations


def _draft(engine: Engine, count: int) -> None:
    """Give every session a chain; its tokens are arbitrary, a draft row costs the same whatever becomes of it."""
    vocabulary = engine.runner.loaded.vocabulary
    tokens = pack_tokens([7] * count, vocabulary)
    for session in list(engine.sessions.values()):
        session.tree.clear()
        anchor = len(session.log)
        engine.draft(session.request.session_id, pb.Draft(tokens=tokens, count=count, anchor=anchor))


def _transformers(model: str, loaded: LoadedModel, context: int, steps: int, repeats: int) -> dict[str, Any]:
    folder = bundled_model() if model == "bundled" else model
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = np.random.default_rng(0)
    prompt = torch.from_numpy(generator.integers(5, loaded.vocabulary, (1, context)))
    mask = torch.ones_like(prompt)

    def seconds(tokens: int) -> float:
        started = time.perf_counter()
        reference.generate(
            prompt, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return time.perf_counter() - started

    seconds(2)
    # The first token holds the prompt's cost; what follows is decoding alone.
    rates = [steps / (seconds(steps + 1) - seconds(1)) for _ in range(repeats)]
    return {"case": "transformers generate, 1 session, greedy", "tokens_per_s": statistics.median(rates)}


def _ignore(_: object) -> None:
    """A sink for events that nobody reads."""
