"""The commands `outrider bench fleet ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from outrider_cloud.fleet.bench.gates import bench_gates
from outrider_cloud.fleet.bench.load import LoadPlan, bench_load
from outrider_cloud.fleet.bench.place import place
from outrider_cloud.fleet.bench.registry import RegistryPlan, bench_registry
from outrider_cloud.fleet.bench.update import UpdatePlan, bench_update
from outrider_shared.cli import TypedErrors
from outrider_shared.logs import configure_logs
from outrider_shared.packs import bundled_pack
from outrider_shared.processes import ending_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable

_console = Console(stderr=True)
_REGISTRY, _LOAD, _UPDATE = RegistryPlan(), LoadPlan(), UpdatePlan()


@click.group(cls=TypedErrors)
def fleet() -> None:
    """The fleet plane: its gates, its registry, and its devices under load."""
    configure_logs()
    click.get_current_context().with_resource(ending_on_sigterm())


def result_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Where the result goes."""
    file = click.Path(path_type=Path, dir_okay=False)
    for option in (
        click.option("--out", type=file, help="Write the result there as JSON, too."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    ):
        command = option(command)
    return command


def told(result: dict[str, Any], tables: dict[str, str], out: Path | None, *, as_json: bool) -> None:
    """Write and print a result; `tables` names its lists of rows and their columns."""
    result = place() | result
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    if as_json:
        click.echo(json.dumps(result))
        return
    console = Console(width=None if _console.is_terminal else 160)
    for name, columns in tables.items():
        table = Table(*columns.split(), title=name.replace("_", " "), box=None, header_style="bold")
        for row in result[name]:
            table.add_row(*(_cell(row.get(column)) for column in columns.split()))
        console.print(table)
    for name, value in result.items():
        if isinstance(value, int | float | str) or name.startswith(("desired", "slowdown")):
            console.print(f"{name}: {_cell(value)}")


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


@fleet.command()
@click.option(
    "--runs",
    type=click.IntRange(10),
    default=1000,
    show_default=True,
    help="Roll-outs simulated for each row of the first table, and a fifth of that for the second.",
)
@click.option(
    "--pairs",
    type=click.IntRange(10),
    default=400,
    show_default=True,
    help="Pairs of windows that a roll-out without an alarm lasts.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of chance.")
@result_options
def gates(runs: int, pairs: int, seed: int, *, out: Path | None, as_json: bool) -> None:
    """False alarms of canary against control, and how many windows find a loss."""
    with _console.status("simulating") as status:
        result = bench_gates(runs, pairs, seed, status.update)
    tables = {
        "false_alarms": "case gate alpha runs alarms share share_upper_95",
        "losses": "change gate runs found pairs_median pairs_p95 pairs_median_of_either_gate windows_per_canary_median",
    }
    told(result, tables, out, as_json=as_json)


@fleet.command()
@click.option(
    "--devices", type=click.IntRange(10), default=_REGISTRY.devices, show_default=True, help="In the registry."
)
@click.option(
    "--windows", type=click.IntRange(1), default=_REGISTRY.windows, show_default=True, help="Of telemetry of each."
)
@click.option(
    "--repeats",
    type=click.IntRange(2),
    default=_REGISTRY.repeats,
    show_default=True,
    help="How often each view is asked for.",
)
@click.option("--seed", type=int, default=_REGISTRY.seed, show_default=True, help="Of chance.")
@result_options
def registry(*, out: Path | None, as_json: bool, **plan: int) -> None:
    """A registry of many devices: messages taken per second, and how soon the page is answered."""
    with _console.status("preparing") as status:
        result = bench_registry(RegistryPlan(**plan), status.update)
    tables = {
        "ingest": "messages count per_s per_core_s cpu_us_each",
        "views": "view requests bytes p50_ms p95_ms max_ms",
    }
    told(result, tables, out, as_json=as_json)


@fleet.command()
@click.option(
    "--devices", type=click.IntRange(1, 20_000), default=_LOAD.devices, show_default=True, help="Connected at once."
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=_LOAD.seconds, show_default=True, help="How long they speak."
)
@click.option(
    "--telemetry-s",
    type=click.FloatRange(0.1),
    default=_LOAD.telemetry_s,
    show_default=True,
    help="Seconds between two messages of a device.",
)
@click.option(
    "--turns",
    type=click.IntRange(0, 100),
    default=_LOAD.turns,
    show_default=True,
    help="Changes of all devices' desired state.",
)
@result_options
def load(*, out: Path | None, as_json: bool, **plan: Any) -> None:
    """Simulated devices on a real broker and service: nothing lost, desired state to all and reported back."""
    with _console.status("preparing") as status:
        result = bench_load(LoadPlan(**plan), status.update)
    told(result, {}, out, as_json=as_json)


@fleet.command()
@click.option("--rounds", type=click.IntRange(2), default=_UPDATE.rounds, show_default=True, help="Updates.")
@click.option(
    "--quiet-s", type=click.FloatRange(1), default=_UPDATE.quiet_s, show_default=True, help="Seconds between two."
)
@click.option(
    "--pack-mib", type=click.IntRange(1), default=_UPDATE.pack_mib, show_default=True, help="Size of the packs."
)
@click.option("--seed", type=int, default=_UPDATE.seed, show_default=True, help="Of what packs are filled up with.")
@result_options
def update(*, out: Path | None, as_json: bool, **plan: Any) -> None:
    """Answers of a device while its draft is updated, beside those while it is not, in turns."""
    with _console.status("preparing") as status:
        result = bench_update(UpdatePlan(**plan), bundled_pack(), status.update)
    told(result, {}, out, as_json=as_json)


if __name__ == "__main__":
    sys.exit(fleet())
