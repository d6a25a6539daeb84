"""The command `outrider bench link`."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from outrider_edge.bench.grid import Grid
from outrider_edge.bench.load import Crowd
from outrider_edge.bench.plots import draw, matplotlib_pyplot
from outrider_edge.bench.processes import make_identity, measured
from outrider_edge.bench.saved import Saved
from outrider_edge.bench.setting import bench_command, bench_requests, machine, wide_console
from outrider_edge.bench.summary import BASELINES
from outrider_edge.bench.verdicts import verdict_table, verdicts
from outrider_edge.compare import BUNDLED
from outrider_shared.cli import TypedErrors
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

_QUICK = {"rtt": "0,25,50,100,200", "step_ms": "real,25", "count": 4, "tune": 2, "lengths": 2}
_MEDIUM = {"rtt": "0,10,25,50,100,200", "step_ms": "real,10,25,50", "count": 6, "tune": 2, "lengths": 2}
_NOTES = [
    "paced engines are labelled so: they sleep until a step took its time, to stand in for a larger model",
    "tokens/s counts from the call to the last token; prompts are in the cloud's prefix cache, connections are up",
    "cloud_busy_ms_per_token is measured by the engine: the session's share of its steps, and of the cloud's own drafting",
    "a co-located drafter keeps the cloud busy too: its draft time counts as cloud busy time",
    "methods with +draft talk to a cloud with a draft model beside the target (--cloud-draft); it drafts on the engine's own time",
    "cloud_cpu_ms_per_token is measured: processor time of the cloud's process, without a co-located drafter's; paced steps sleep",
    "many devices: each gives its answers one by one; busy_ms is by round and device; engine steps are of all sessions together",
    "bytes are TCP payload at the emulated link; those per token leave out what an answer of one token costs",
]


@click.command()
@click.option("--rtt", default="0,10,25,50,100,200", show_default=True, help="Round-trip times, ms.")
@click.option("--rate", default="0", show_default=True, help="Kilobits per second, each way; 0 is unlimited.")
@click.option(
    "--jitter-ms", type=click.FloatRange(0), default=0.0, show_default=True, help="Spread of the link's delay."
)
@click.option("--loss", default="0", show_default=True, help="Parts of the segments that stall for a retransmission.")
@click.option(
    "--stalls",
    help="The same in percent, such as 0,1,5,10,100, in place of --loss; 100 tries each offline behaviour on a dead link.",
)
@click.option("--sessions", default="", help="Also that many devices at once, on each link; such as 4,16.")
@click.option(
    "--answers", type=click.IntRange(1), default=6, show_default=True, help="Of each of many devices, one by one."
)
@click.option(
    "--rounds",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="How often many devices give those by all methods, in turns; what is told of doubt is drawn from them.",
)
@click.option(
    "--row-budget", type=click.IntRange(0), default=0, help="Most rows of a step; by default the cloud's own."
)
@click.option(
    "--step-ms", default="real,10,25,50", show_default=True, help="Engines: the model's own step, or paced ones."
)
@click.option("--requests", default=BUNDLED, show_default=True, help="JSONL with `messages` per line, or 'bundled'.")
@click.option("--count", type=click.IntRange(1), default=6, show_default=True, help="Requests per cell.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Requests to leave out at the start.")
@click.option(
    "--tune", type=click.IntRange(1), default=3, show_default=True, help="Requests that the baselines are tuned on."
)
@click.option(
    "--lengths",
    type=click.IntRange(1, 8),
    default=3,
    show_default=True,
    help="Lengths of synchronous speculation measured per cell.",
)
@click.option(
    "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of an answer at most."
)
@click.option("--ignore-eos", is_flag=True, help="Go on past the model's end tokens.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise and of the link.")
@click.option("--model", default=BUNDLED, show_default=True, help="Hugging Face folder of the cloud, or 'bundled'.")
@click.option("--draft", default=BUNDLED, show_default=True, help="Pack folder, or 'bundled'.")
@click.option(
    "--cloud-draft",
    default=BUNDLED,
    show_default=True,
    help="Model folder of the draft in the cloud, 'bundled', or 'none'.",
)
@click.option(
    "--threads", type=click.IntRange(0), default=1, show_default=True, help="CPU threads of a step; 0: torch's choice."
)
@click.option("--tls", is_flag=True, help="Encrypt all connections, with a certificate made for the run.")
@click.option(
    "--quick", is_flag=True, help="Five round-trip times, two engines, 4 requests: about 5 minutes on a quiet machine."
)
@click.option("--medium", is_flag=True, help="All round-trip times and engines, 6 requests: about 20 minutes.")
@click.option(
    "--resume", type=click.Path(path_type=Path), help="Keep each cell here as it is done; a second run goes on."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON object to this file.")
@click.option(
    "--plots", type=click.Path(path_type=Path), help="Draw a plot per metric into this folder (needs matplotlib)."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def link(out: Path | None, plots: Path | None, resume: Path | None, *, as_json: bool, **flags: Any) -> None:
    """Ours against plain streaming, co-located and synchronous speculation, over an emulated link."""
    flags |= _QUICK if flags.pop("quick") else {}
    flags |= _MEDIUM if flags.pop("medium") else {}
    dead = _stalls(flags)
    if plots is not None:
        matplotlib_pyplot()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        engines = _measure(flags, Path(folder), console, Saved(resume, flags), dead=dead)
    judged = verdicts(engines)
    result = {
        "command": bench_command("link"),
        "machine": machine(),
        "settings": flags,
        "notes": _NOTES,
        "verdicts": judged,
        "engines": engines,
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if plots is not None:
        draw(engines, plots)
    if as_json:
        click.echo(json.dumps(result))
    else:
        wide = wide_console()
        for engine in engines:
            wide.print(_table(engine))
            for load in engine.get("high_load", []):
                wide.print(_load_table(load))
        wide.print(verdict_table(judged))


def _stalls(flags: dict[str, Any]) -> bool:
    """Take --stalls for --loss; whether a dead link is asked for."""
    if flags["stalls"] is None:
        return False
    percents = _numbers(flags["stalls"])
    flags["loss"] = ",".join(f"{percent / 100:g}" for percent in percents if percent < 100) or "0"
    return any(percent >= 100 for percent in percents)


def _measure(
    flags: dict[str, Any], folder: Path, console: Console, saved: Saved, *, dead: bool
) -> list[dict[str, Any]]:
    columns = (
        TextColumn("{task.completed}/{task.total} answers"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("answers", total=None)
        grid = _grid(flags, folder, console, saved, lambda count: progress.advance(bar, count), dead=dead)
        progress.update(bar, total=grid.answers * len(grid.links) * len(grid.steps_ms))
        return measured(grid.run())


def _grid(
    flags: dict[str, Any], folder: Path, console: Console, saved: Saved, advance: Callable[[int], None], *, dead: bool
) -> Grid:
    return Grid(
        requests=bench_requests(flags),
        links=[
            LinkProfile(rtt / 1e3, flags["jitter_ms"] / 1e3, rate * 1e3, rate * 1e3, loss=loss)
            for rate, loss, rtt in itertools.product(*(_numbers(flags[n]) for n in ("rate", "loss", "rtt")))
        ],
        steps_ms=_numbers(flags["step_ms"]),
        model=flags["model"],
        draft=flags["draft"],
        cloud_draft=flags["cloud_draft"],
        threads=flags["threads"],
        tune=flags["tune"],
        candidates=flags["lengths"],
        seed=flags["seed"],
        identity=make_identity(folder) if flags["tls"] else None,
        crowds=[Crowd(number, flags["answers"], flags["rounds"]) for number in _counts(flags["sessions"])],
        row_budget=flags["row_budget"],
        dead=dead,
        folder=folder,
        saved=saved,
        advance=advance,
        tell=lambda line: console.print(line, soft_wrap=True, highlight=False),
    )


def _numbers(text: str) -> list[float]:
    """Comma-separated numbers; `real` is 0."""
    try:
        return [0.0 if part.strip() == "real" else float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{text!r} is no list of numbers", hint="write them like 0,10,25") from None


def _counts(text: str) -> list[int]:
    """Comma-separated whole numbers from 1 on; none is none."""
    numbers = _numbers(text) if text else []
    if wrong := [number for number in numbers if number < 1 or number % 1]:
        raise ConfigError(f"{wrong[0]:g} is no number of devices", hint="write them like 4,16")
    return [int(number) for number in numbers]


def _table(engine: dict[str, Any]) -> Table:
    table = Table(
        "rtt ms", "method", title=f"{engine['engine']}; co-located speculation runs {engine['colocated_method']}"
    )
    for name in (
        "tokens/s",
        *(f"x {base}" for base in BASELINES),
        "steps per token",
        "busy ms",
        "B up",
        "B down",
        "wasted",
        "same text",
    ):
        table.add_column(name, justify="right")
    for cell in engine["cells"]:
        for name, figure in cell["methods"].items():
            if name.startswith("chain"):
                continue
            ratio = cell["ratios"][name]
            table.add_row(
                f"{cell['link']['rtt_ms']:g}", figure.get("method", name),
                f"{figure['tokens_per_s']:.1f}", *(f"{ratio[base]:.2f}" for base in BASELINES),
                f"{figure['cloud_steps_per_token']:.2f}",
                f"{figure['cloud_busy_ms_per_token']:.1f}", f"{figure['up_bytes_per_token']:.0f}",
                f"{figure['down_bytes_per_token']:.0f}", f"{figure['wasted_drafts_per_token']:.2f}",
                "yes" if figure["identical_to_plain"] else "NO",
            )  # fmt: skip
        table.add_section()
    return table


def _load_table(load: dict[str, Any]) -> Table:
    title = f"{load['sessions']} devices at once, rtt {load['link']['rtt_ms']:g} ms"
    columns = ("method", "tokens/s in all", "p50", "busy ms", "rows per token", "step ms", "rows per step", "same text")
    table = Table(*columns, title=title)
    for name, figure in load["methods"].items():
        table.add_row(
            name, f"{figure['aggregate_tokens_per_s']:.1f}", f"{figure['tokens_per_s_p50']:.1f}",
            f"{figure['cloud_busy_ms_per_token']:.2f}", f"{figure['cloud_rows_per_token']:.2f}",
            f"{figure['engine_step_ms']:.1f}", f"{figure['engine_rows_per_step']:.1f}",
            "yes" if figure["identical_to_plain"] else "NO",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"link": link}).main(["link", *sys.argv[1:]]))
