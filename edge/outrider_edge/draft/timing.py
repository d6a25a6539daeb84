"""How long a pass of a draft takes on this device, through the runtime that drafts with it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_shared.drafting.runtime import DraftModel, DraftRuntime

ROWS = (1, 2, 4, 8)
_WARM_UP = 3
_QUARTER = 4


def pass_times(
    models: Sequence[DraftModel], *, rows: Sequence[int] = ROWS, context: int = 128, repeats: int = 200
) -> list[dict[int, float]]:
    """Seconds of a pass of each number of rows over `context` slots, per model.

    The lower quartile of `repeats`: what else runs on the device only ever adds. Models take turns pass by pass, so
    that a busy moment meets all of them alike.
    """
    runtimes = [_filled(model, context, max(rows)) for model in models]
    taken: list[dict[int, list[float]]] = [{count: [] for count in rows} for _ in runtimes]
    for repeat in range(_WARM_UP + repeats):
        for runtime, times in zip(runtimes, taken, strict=True):
            _timed(runtime, 1)  # brings the model back into the processor's caches
            for count in rows:
                elapsed = _timed(runtime, count)
                if repeat >= _WARM_UP:
                    times[count].append(elapsed)
    return [{count: sorted(each)[len(each) // _QUARTER] for count, each in times.items()} for times in taken]


def seconds_for(rows: float, times: dict[int, float]) -> float:
    """Seconds of a pass of any number of rows: interpolated between measured ones, beyond them along the last slope."""
    counts = sorted(times)
    if rows > counts[-1] and len(counts) > 1:
        low, high = counts[-2:]
        return times[high] + (rows - high) * (times[high] - times[low]) / (high - low)
    return float(np.interp(rows, counts, [times[count] for count in counts]))


def _timed(runtime: DraftRuntime, count: int) -> float:
    """Seconds of one pass, after which the runtime holds what it held before."""
    held = runtime.length
    started = time.perf_counter()
    runtime.forward(range(1, count + 1), rows=(count - 1,))
    elapsed = time.perf_counter() - started
    runtime.rewind(held)
    return elapsed


def _filled(model: DraftModel, context: int, rows: int) -> DraftRuntime:
    runtime = model.new_runtime()
    vocabulary = model.manifest.architecture.vocab_size
    slots = max(1, min(context, runtime.capacity - rows))
    runtime.prefill([int(token) for token in np.random.default_rng(0).integers(0, vocabulary, slots)])
    return runtime
