"""A measurement as a list of jobs: each makes what it needs, tells one result, and may fail by itself."""

from __future__ import annotations

import gc
import json
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


def run_jobs(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The results in order; of a job that failed the reason, under `failed`. Progress goes to standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results = []
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.name)
            results.append({"name": job.name, **_result(job)})
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
