"""A grid in virtual time: `PYTHONPATH=cloud:edge:shared:tests python -m support.virtual --help`."""

from __future__ import annotations

import itertools
import json
import logging

import click
import structlog
from rich.console import Console
from rich.table import Table

from outrider_cloud.engine.config import EngineConfig
from outrider_edge.bench import methods
from outrider_shared.emulator.profile import LinkProfile
from support.virtual.cloud import StepCost
from support.virtual.world import Scenario, simulate

_COLUMNS = ("tokens_per_s", "ttft_ms", "steps_per_token", "rows_per_token", "busy_ms_per_token", "busy_share",
            "drafted_per_token", "accepted_per_token", "looked_up_per_token", "cloud_drafted_per_token",
            "up_bytes_per_token", "down_bytes_per_token")  # fmt: skip


@click.command()
@click.option("--rtt", default="0,25,50,100,200", show_default=True, help="Round-trip times, ms.")
@click.option("--step-ms", default="25", show_default=True, help="Step times of the target.")
@click.option("--methods", "names", default="plain,ours-ahead,ours-hold,ours-auto", show_default=True)
@click.option("--sessions", default="1", show_default=True, help="Devices at the same time.")
@click.option("--draft-ms", default=1.5, show_default=True, help="A device's draft pass.")
@click.option(
    "--cloud-draft-ms", default=0.0, show_default=True, help="A round of a draft model in the cloud; 0: none."
)
@click.option("--rate", default=0.0, show_default=True, help="Kilobits per second, each way; 0 is unlimited.")
@click.option("--jitter-ms", default=0.0, show_default=True)
@click.option("--answers", default=12, show_default=True, help="Of each device.")
@click.option("--rows", default=256, show_default=True, help="Row budget of a step.")
@click.option("--row-us", default=0.0, show_default=True, help="Time of each row of a step.")
@click.option("--json", "as_json", is_flag=True)
def main(rtt, step_ms, names, sessions, draft_ms, cloud_draft_ms, rate, jitter_ms, answers, rows, row_us, as_json):
    """Play a grid and print its figures; tokens/s also as a ratio to the first method's."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    results = []
    for step, count, delay in itertools.product(*(_numbers(text) for text in (step_ms, sessions, rtt))):
        first = None
        for name in names.split(","):
            link = LinkProfile(delay / 1e3, jitter_ms / 1e3, rate * 1e3, rate * 1e3)
            figures = simulate(Scenario(
                methods.method(name), link, StepCost(step / 1e3, row_us / 1e6), draft_ms / 1e3,
                cloud_draft_ms / 1e3, sessions=int(count), answers=answers, config=EngineConfig(row_budget=rows),
            ))  # fmt: skip
            first = first or figures["tokens_per_s"]
            kept = {column: figures[column] for column in _COLUMNS}
            results.append({"step_ms": step, "sessions": count, "rtt_ms": delay, "method": name,
                            "ratio": figures["tokens_per_s"] / first, **kept})  # fmt: skip
    if as_json:
        click.echo(json.dumps(results))
        return
    table = Table(box=None, pad_edge=False)
    for column in results[0]:
        table.add_column(column.replace("_per_token", "\n/token").replace("_", "\n"), justify="right", no_wrap=True)
    for row in results:
        table.add_row(*(value if isinstance(value, str) else f"{value:.3g}" for value in row.values()))
    Console(width=150).print(table)


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
