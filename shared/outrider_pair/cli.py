"""`outrider train eval`: what a draft is worth to its target, measured with both sides in one process."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError
from outrider_shared.files import check_writable

if TYPE_CHECKING:
    from outrider_pair.cells import Plan
    from outrider_pair.evaluate import Pair
    from outrider_pair.texts import Texts

BUNDLED = "bundled"


def _read_recipe(context: click.Context, _: click.Parameter, name: str) -> None:
    """Lay a recipe's keys below the flags. Raises ConfigError."""
    from outrider_cloud.train.settings import read_table  # noqa: PLC0415 - keeps `--help` quick

    if not name:
        return
    flags = {option.lstrip("-").replace("-", "_"): each for each in context.command.params for option in each.opts}
    for key, value in ((key.replace("-", "_"), value) for key, value in read_table(name).items()):
        if key not in flags or key in {"config", "help", "json"}:
            known = ", ".join(sorted(set(flags) - {"config", "help", "json"}))
            raise ConfigError(f"the recipe has no {key}", hint=f"known: {known}")
        if isinstance(value, dict) or isinstance(value, bool) != getattr(flags[key], "is_flag", False):
            raise ConfigError(f"{key} is {value!r} in the recipe", hint="as the flag of that name takes it")
        context.default_map = {**(context.default_map or {}), str(flags[key].name): value}


@click.command("eval")
@click.option(
    "--config",
    default="",
    metavar="RECIPE",
    is_eager=True,
    expose_value=False,
    callback=_read_recipe,
    help="TOML file whose keys are the flags below, which override it; or the recipe that ships: bundled-eval.",
)
@click.option("--target", default=BUNDLED, show_default=True, help="Hugging Face folder, or 'bundled'.")
@click.option(
    "--weights",
    type=click.Choice(["native", "int8", "fp8"]),
    default="native",
    show_default=True,
    help="How the target's matrices are held.",
)
@click.option(
    "--pack",
    "packs",
    multiple=True,
    default=[BUNDLED],
    show_default=True,
    help="Pack folder, or 'bundled'; several are compared on the same requests and noise.",
)
@click.option(
    "--data",
    multiple=True,
    default=[BUNDLED],
    show_default=True,
    help="JSONL (.zst too) with `messages`, `question`, `prompt`, `turns` or `text` per line, held out from training; each file is a domain unless its rows have `domain`.",
)
@click.option("--limit", type=click.IntRange(1), help="Requests of each file at most.")
@click.option(
    "--temperature",
    "temperatures",
    type=click.FloatRange(0),
    multiple=True,
    default=[0.0, 0.7, 1.0],
    show_default=True,
    help="The first is the one of the key `tokens_per_step`.",
)
@click.option(
    "--max-tokens", type=click.IntRange(1), default=96, show_default=True, help="Tokens of an answer at most."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the noise; request i has seed + i."
)
@click.option("--depth", type=click.IntRange(1), help="Longest chain of a burst; the device's default.")
@click.option("--width", type=click.IntRange(1), help="Candidates per position of a tree; the device's default.")
@click.option(
    "--threads",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="CPU threads of the target; 0: torch's choice.",
)
@click.option("--skip-broken", is_flag=True, help="Leave out lines that cannot be read, and name them.")
@click.option("--write", is_flag=True, help="Keep figures and the prior of survival in the packs' manifests.")
@click.option("--force", is_flag=True, help="With --write: replace the evaluation for another target.")
@click.option(
    "--report", type=click.Path(path_type=Path), help="Write report.html, report.json and the plots into this folder."
)
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON object to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(*, as_json: bool, **flags: Any) -> None:
    """Measure accepted tokens per cloud step, and what else tells a good draft."""
    import torch  # noqa: PLC0415 - keeps `--help` quick

    from outrider_pair import evaluate as room  # noqa: PLC0415
    from outrider_pair.report import check_can_draw, write_report  # noqa: PLC0415

    if flags["threads"]:
        torch.set_num_threads(flags["threads"])
    if flags["report"] is not None:
        check_can_draw()
        check_writable(flags["report"] / "report.json")
    if flags["out"] is not None:
        check_writable(flags["out"])
    pair, texts, plan = _prepare(flags)
    result: dict[str, Any] = {"command": typed_command("eval"), "machine": _machine(), "settings": _plain(flags)}
    result |= {"broken_lines": texts.broken, "too_long": texts.too_long}
    result |= _run(pair, plan)
    if flags["write"]:
        for number, pack in enumerate(pair.packs):
            room.keep(pack, result, number=number, force=flags["force"])
    if flags["out"] is not None:
        flags["out"].write_text(json.dumps(result, indent=1) + "\n")
    if flags["report"] is not None:
        click.echo(f"report: {write_report(result, flags['report'])}", err=True)
    if as_json:
        click.echo(json.dumps(result))
    else:
        _print(result)


def _prepare(flags: dict[str, Any]) -> tuple[Pair, Texts, Plan]:
    from outrider_cloud.model.weights import Weights  # noqa: PLC0415
    from outrider_edge.session.policy import DraftPolicy  # noqa: PLC0415
    from outrider_pair.cells import Plan  # noqa: PLC0415
    from outrider_pair.evaluate import load_pair  # noqa: PLC0415
    from outrider_pair.texts import read_texts  # noqa: PLC0415
    from outrider_shared.packs import bundled_pack  # noqa: PLC0415 - as above

    folders = [bundled_pack() if str(path) == BUNDLED else Path(path) for path in flags["packs"]]
    pair = load_pair(flags["target"], folders, Weights(flags["weights"]))
    context = min([pair.target.context_length, *(pack.manifest.architecture.context_length for pack in pair.packs)])
    longest = context - flags["max_tokens"]
    template = next((pack.chat_template for pack in pair.packs if pack.chat_template), pair.target.chat_template)
    texts = read_texts(
        list(flags["data"]), pair.target.tokenizer, template or "",
        longest=longest, limit=flags["limit"], skip_broken=flags["skip_broken"],
    )  # fmt: skip
    policy = DraftPolicy(**{name: flags[name] for name in ("depth", "width") if flags[name] is not None})
    temperatures = tuple(dict.fromkeys(flags["temperatures"]))
    return pair, texts, Plan(texts.rows, temperatures, flags["max_tokens"], flags["seed"], policy)


def _run(pair: Pair, plan: Plan) -> dict[str, Any]:
    from outrider_pair.evaluate import evaluate as run  # noqa: PLC0415 - as above
    from outrider_pair.evaluate import rounds  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("loading", total=rounds(pair, plan))
        return run(pair, plan, lambda doing: progress.update(task, advance=1, description=doing))


def _print(result: dict[str, Any]) -> None:
    from outrider_pair.tables import tables  # noqa: PLC0415 - as above

    for place in result["broken_lines"]:
        click.echo(f"left out: {place}", err=True)
    for table in tables(result):
        Console().print(table)


def typed_command(name: str) -> str:
    """The command `outrider train NAME` as typed after its name, with the environment's paths left out."""
    arguments = sys.argv[1:]
    return shlex.join(["outrider", "train", name, *arguments[2 if arguments[:2] == ["train", name] else 1 :]])


def _plain(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}


def _machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "torch": version("torch"),
        "onnxruntime": version("onnxruntime"),
    }


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"eval": evaluate}).main(sys.argv[1:]))
