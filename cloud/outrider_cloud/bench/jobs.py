"""A measurement as a list of jobs: each makes what it needs, tells one result, and may fail by itself."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from outrider_cloud.bench.machine import machine

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One measurement.

    Attributes:
        name: For people.
        run: Measures; what it allocates is gone when it returns.
    """

    name: str
    run: Callable[[], dict[str, Any]]


def run_jobs(
    jobs: Sequence[Job], limit_s: float = 0.0, keep: Callable[[list[dict[str, Any]]], None] | None = None
) -> list[dict[str, Any]]:
    """The results in order; of a job that failed the reason, under `failed`. Progress goes to standard error.

    Args:
        jobs: Run one after the other.
        limit_s: Seconds; what has not begun then is left out, which is told under `left_out`. 0 is no limit.
        keep: Told all results so far after each job, so that they are not lost if one of the next is killed.
    """
    started = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[dict[str, Any]] = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.name)
            late = limit_s and time.monotonic() - started > limit_s
            told = {"left_out": f"not begun within {limit_s:.0f} s"} if late else _result(job)
            results.append({"name": job.name, **told})
            if keep is not None:
                keep(results)
            progress.advance(task)
    return results


def _result(job: Job) -> dict[str, Any]:
    try:
        return job.run()
    except Exception as error:  # noqa: BLE001 - a case that does not run must not take the others' time with it
        lines = str(error).strip().splitlines()
        return {"failed": f"{type(error).__name__}: {lines[0] if lines else ''}"}
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def report(bench: str, device: torch.device, fields: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything as one JSON object, with what it was measured on."""
    return {"bench": bench, "machine": machine(device), **fields, "results": results}


def write_json(path: Path, told: dict[str, Any]) -> None:
    """A report as a file; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
