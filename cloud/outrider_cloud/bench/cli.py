"""The command `outrider bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError, InternalError
from outrider_shared.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch


@click.group(cls=TypedErrors)
def bench() -> None:
    """Measurements, ours beside a baseline of the same run."""
    configure_logs()


@bench.command()
@click.option("--model", default="bundled", show_default=True, help="Hugging Face folder, or 'bundled'.")
@click.option("--steps", type=click.IntRange(8), default=48, show_default=True, help="Steps of a measurement.")
@click.option("--context", type=click.IntRange(1), default=128, show_default=True, help="Tokens of each prompt.")
@click.option(
    "--repeats", type=click.IntRange(1), default=3, show_default=True, help="Measurements; the median is told."
)
@click.option("--threads", type=click.IntRange(0), default=0, help="CPU threads; 0: torch's choice.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def engine(model: str, steps: int, context: int, repeats: int, threads: int, *, as_json: bool) -> None:
    """Steps, rows and tokens per second of the engine, and its overhead around the model's forward."""
    import torch  # noqa: PLC0415 - slow to import

    from outrider_cloud.bench.engine import bench_engine  # noqa: PLC0415 - as above

    if threads:
        torch.set_num_threads(threads)
    console = Console(stderr=as_json)
    results = []
    with console.status("measuring"):
        for result in bench_engine(model, steps, context, repeats):
            results.append(result)
            if "case" in result:
                console.log(result["case"], f"{result['tokens_per_s']:.0f} tokens/s")
    *cases, summary = results
    if as_json:
        click.echo(json.dumps({**summary, "baseline": cases[0], "cases": cases[1:]}))
    else:
        console.print(_table(cases))
        console.print(summary)


def _table(cases: list[dict[str, Any]]) -> Table:
    table = Table("case", "step ms (p50)", "steps/s", "rows/s", "tokens/s", "x transformers", "overhead")
    table.add_row(cases[0]["case"], "", "", "", f"{cases[0]['tokens_per_s']:.0f}", "1.00", "")
    for case in cases[1:]:
        told = ", ".join(f"{name} {value}" for name, value in case["case"].items() if value)
        table.add_row(
            told,
            f"{case['step_ms_p50']:.2f}",
            f"{case['steps_per_s']:.0f}",
            f"{case['rows_per_s']:.0f}",
            f"{case['tokens_per_s']:.0f}",
            f"{case['ratio_to_transformers']:.2f}",
            f"{case['overhead_share']:.1%}",
        )
    return table


def _on_device(warmup: int, repeats: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The flags that kernels, step and peers have in common."""
    options = (
        click.option("--model", default=None, help="Shape of the random weights: llama-3.1-8b, qwen3-8b, small-llama, tiny-llama or tiny-qwen3. Default: llama-3.1-8b on a card, tiny-llama on a CPU."),
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N."),
        click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True, help="Of weights, keys and values."),
        click.option("--warmup", type=click.IntRange(1), default=warmup, show_default=True, help="Runs before those that count."),
        click.option("--repeats", type=click.IntRange(1), default=repeats, show_default=True, help="Runs that count; median, least and most are told."),
        click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the JSON object here, too; after each measurement."),
        click.option("--limit-s", type=click.FloatRange(0), default=0.0, help="Seconds after which no measurement is begun; 0: all are."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )  # fmt: skip

    def add(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


@bench.command()
@_on_device(warmup=3, repeats=20)
def kernels(*, out: Path | None, as_json: bool, limit_s: float, warmup: int, repeats: int, **place: Any) -> None:
    """Every GPU kernel beside its torch reference: errors, times, bytes per second. On a CPU: errors alone."""
    from outrider_cloud.bench.kernels import kernel_jobs, ratios  # noqa: PLC0415 - torch is slow to import

    shape, device, dtype = _place(**place)
    jobs = kernel_jobs(shape, device, dtype, warmup, repeats)
    note = None if device.type == "cuda" else "on a CPU the kernels run through the host build: results, no times"
    _measure(
        "kernels", jobs, device, {"model": shape, "dtype": str(dtype), "note": note}, ratios, out, as_json, limit_s
    )


@bench.command()
@_on_device(warmup=5, repeats=30)
@click.option(
    "--compiled",
    type=click.Choice(["with", "without", "alone"]),
    default="with",
    show_default=True,
    help="Some steps beside torch.compile, at the end; alone: only those.",
)
def step(
    *, out: Path | None, as_json: bool, limit_s: float, warmup: int, repeats: int, compiled: Any, **place: Any
) -> None:
    """Whole steps by rows and context: beside a copy of what they read, torch.compile, and what our code adds."""
    from outrider_cloud.bench.step import StepBench  # noqa: PLC0415 - as above

    shape, device, dtype = _place(**place)
    jobs = StepBench(shape, device, dtype, warmup, repeats, compiled).jobs()
    _measure("step", jobs, device, {"model": shape, "dtype": str(dtype)}, None, out, as_json, limit_s)


@bench.command()
@_on_device(warmup=1, repeats=3)
@click.option("--sessions", default="1,8,32", show_default=True, help="Numbers of sessions at once.")
@click.option("--prompt", type=click.IntRange(1), default=512, show_default=True, help="Tokens of each prompt.")
@click.option("--tokens", type=click.IntRange(8), default=128, show_default=True, help="Tokens of each answer.")
@click.option(
    "--drafts", type=click.IntRange(1), default=7, show_default=True, help="Drafted tokens of a session and step."
)
@click.option(
    "--acceptance",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Share of drafted tokens that are right, where those before are.",
)
def peers(
    *,
    out: Path | None,
    as_json: bool,
    limit_s: float,
    sessions: str,
    model: str | None,
    device: str,
    dtype: str,
    **setting: Any,
) -> None:
    """Tokens per second beside every way in which transformers generates, plain and at equal acceptance."""
    from outrider_cloud.bench.peers import PeerBench, Setting, ratios  # noqa: PLC0415 - as above

    shape, on, kind = _place(model, device, dtype)
    jobs = PeerBench(shape, on, kind, _numbers(sessions), Setting(**setting)).jobs()
    _measure("peers", jobs, on, {"model": shape, "dtype": str(kind), "setting": setting}, ratios, out, as_json, limit_s)


def _place(model: str | None, device: str, dtype: str) -> tuple[str, torch.device, torch.dtype]:
    """Shape, device and type that were asked for."""
    import torch  # noqa: PLC0415 - as above

    from outrider_cloud.bench.shapes import DTYPES, config_of  # noqa: PLC0415
    from outrider_cloud.build import check_device  # noqa: PLC0415

    check_device(device)
    on = torch.device(device)
    if on.type == "cuda":
        on = torch.device("cuda", on.index or 0)
        torch.cuda.set_device(on)
    shape = model or ("llama-3.1-8b" if on.type == "cuda" else "tiny-llama")
    config_of(shape)
    return shape, on, DTYPES[dtype]


def _numbers(given: str) -> list[int]:
    try:
        numbers = [int(part) for part in given.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--sessions is {given!r}", hint="give numbers from 1 on, such as 1,8,32")
    return numbers


def _measure(
    name: str,
    jobs: list[Any],
    device: torch.device,
    fields: dict[str, Any],
    summary: Any,
    out: Path | None,
    as_json: bool,
    limit_s: float,
) -> None:
    """Run the jobs, tell the results, and end with an error if one of them failed."""
    from outrider_cloud.bench.jobs import report, run_jobs, write_json  # noqa: PLC0415
    from outrider_cloud.bench.tables import table_of  # noqa: PLC0415

    def told_of(results: list[dict[str, Any]]) -> dict[str, Any]:
        return report(name, device, {**fields, "summary": summary(results) if summary else None}, results)

    def keep(results: list[dict[str, Any]]) -> None:
        if out is not None:
            write_json(out, told_of(results))

    results = run_jobs(jobs, limit_s, keep)
    told = told_of(results)
    if as_json:
        click.echo(json.dumps(told))
    else:
        Console().print(table_of(told))
        Console().print(told["machine"])
    failed = [result["name"] for result in results if "failed" in result]
    if failed:
        raise InternalError(f"{len(failed)} of {len(results)} measurements failed: {', '.join(failed)}")


if __name__ == "__main__":
    sys.exit(bench())
