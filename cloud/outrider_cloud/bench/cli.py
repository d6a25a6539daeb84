"""The command `outrider bench`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from outrider_shared.cli import TypedErrors
from outrider_shared.logs import configure_logs


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


if __name__ == "__main__":
    sys.exit(bench())
