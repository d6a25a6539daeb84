"""`outrider train`: make the best draft for a target, and prove it.

Commands import what they need when they run, so that `--help` is quick and the group works without the [train] extra.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from outrider_shared.cli import TrainingCommands
from outrider_shared.errors import ConfigError
from outrider_shared.logs import configure_logs

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_cloud.train.world import World

_DATA = click.option("--data", type=click.Path(path_type=Path, exists=True), multiple=True, help="Text file or folder; may come more than once.")  # fmt: skip
_SET = click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Override any key of the recipe, such as fit.steps=200.")  # fmt: skip
_SKIP = click.option("--skip-broken", is_flag=True, help="Go on without broken lines of data, and tell how many.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
_FORCE = click.option("--force", is_flag=True, help="Start anew instead of going on, and replace what is at --out.")


@click.group(cls=TrainingCommands)
def train() -> None:
    """Train targets and drafts: from data, from the target's own samples, or by pruning."""
    configure_logs()


def _overrides(sets: tuple[str, ...], **flags: Any) -> dict[str, Any]:
    from outrider_cloud.train.settings import parse_set  # noqa: PLC0415 - see above

    return parse_set(sets) | {key.replace("__", "."): value for key, value in flags.items() if value is not None}


def _teller(world: World, *, as_json: bool) -> Callable[[str], None]:
    console = Console(stderr=as_json)
    return lambda text: console.print(text, highlight=False, soft_wrap=True) if world.leads else None


def _tell(figures: dict[str, Any], world: World, *, as_json: bool) -> None:
    if world.leads and as_json:
        click.echo(json.dumps(figures))


@train.command()
@click.option(
    "--config", default="", metavar="RECIPE", help="TOML file, or the name of a recipe that ships: bundled-target."
)
@_DATA
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--work", type=click.Path(path_type=Path), help="Texts and checkpoints; by default OUT.work.")
@click.option("--steps", "fit__steps", type=click.IntRange(1), help="Updates.")
@click.option("--tokenizer", help="Folder or tokenizer.json to use instead of training one.")
@_SET
@_SKIP
@_FORCE
@_JSON
def target(config: str, data: tuple[Path, ...], out: Path, work: Path | None, sets: tuple[str, ...], skip_broken: bool, force: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Train a target: any Hugging Face causal configuration on any texts. Goes on where it was cut off."""
    from outrider_cloud.train.documents import Reading  # noqa: PLC0415
    from outrider_cloud.train.settings import TargetRecipe, read_recipe  # noqa: PLC0415
    from outrider_cloud.train.target import TargetRun  # noqa: PLC0415
    from outrider_cloud.train.world import joined  # noqa: PLC0415

    recipe = read_recipe(TargetRecipe, config, _overrides(sets, **flags))
    place = _work(out, work, force=force)
    with joined() as world:
        say = _teller(world, as_json=as_json)
        figures = TargetRun(recipe, data, out, place, world, Reading(skip_broken), say).run()
        say(f"{out}: {figures['parameters'] / 1e6:.2f} M parameters, held-out loss {figures['valid']:.3f} nats")
        _tell(figures | {"path": str(out)}, world, as_json=as_json)


@train.command()
@click.option(
    "--target",
    "target_folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face folder, or 'bundled'.",
)
@click.option(
    "--config",
    default="",
    metavar="RECIPE",
    help="TOML file, or the name of a recipe that ships: bundled-draft, own-samples.",
)
@_DATA
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Pack to write; the draft as a model folder is WORK/draft.",
)
@click.option("--work", type=click.Path(path_type=Path), help="Samples and checkpoints; by default OUT.work.")
@click.option("--init", "student__init", help="prune (of the target), scratch, or a draft's folder to go on from.")
@click.option("--keep", help="With --init prune: what stays, such as layers=2,hidden=128.")
@click.option("--loss", "distil__loss", help="forward-kl, reverse-kl, tv, mix, coupling, coupled-kl or text.")
@click.option("--steps", "fit__steps", type=click.IntRange(1), help="Updates.")
@click.option("--prompts", "distil__prompts", type=click.IntRange(1), help="Texts that the target writes.")
@click.option("--precision", type=click.Choice(["fp32", "int8", "int4"]), help="Of the pack.")
@_SET
@_SKIP
@_FORCE
@_JSON
def draft(target_folder: Path, config: str, data: tuple[Path, ...], out: Path, work: Path | None, keep: str | None, sets: tuple[str, ...], skip_broken: bool, force: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip  # noqa: PLR0913, PLR0917 - flags
    """Distil a draft for a target and make its pack. Without --data it learns from the target's own samples alone."""
    from outrider_cloud.model.loading import BUNDLED, bundled_model  # noqa: PLC0415
    from outrider_cloud.pack.export import Request, export_pack  # noqa: PLC0415
    from outrider_cloud.train.documents import Reading  # noqa: PLC0415
    from outrider_cloud.train.making import DraftRun  # noqa: PLC0415
    from outrider_cloud.train.prune import Keep  # noqa: PLC0415
    from outrider_cloud.train.settings import DraftRecipe, read_recipe  # noqa: PLC0415
    from outrider_cloud.train.world import joined  # noqa: PLC0415
    from outrider_shared.packs import Precision  # noqa: PLC0415

    over = _overrides(sets, **flags)
    if keep:
        over |= {f"student.keep.{name}": value for name, value in vars(Keep.parse(keep)).items() if value}
    recipe = read_recipe(DraftRecipe, config, over)
    folder = bundled_model() if str(target_folder) == BUNDLED else target_folder
    place = _work(out, work, force=force)
    if out.exists() and any(out.iterdir()) and not force:
        raise ConfigError(f"{out} exists", hint="--force replaces it")
    with joined() as world:
        say = _teller(world, as_json=as_json)
        figures = DraftRun(folder, recipe, data, place, world, Reading(skip_broken), say).run()
        if world.leads:
            name = recipe.name or out.name
            made = export_pack(Request(place / "draft", out, Precision(recipe.precision), name, force=force))
            for found in figures["acceptance"]:
                say(
                    f"T={found['temperature']:g}: {found['accepted']:.1%} accepted, {found['tree']['tokens_per_step']:.2f} tokens a step with a tree, {found['chain']['tokens_per_step']:.2f} with a chain of 4"
                )
            say(f"{made.path}: {figures['parameters'] / 1e6:.2f} M parameters, {recipe.precision}")
        _tell(figures | {"path": str(out)}, world, as_json=as_json)


@train.command()
@click.option(
    "--target",
    "target_folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face folder, or 'bundled'.",
)
@click.option(
    "--keep", required=True, help="What stays, such as layers=4,hidden=192,heads=2,kv_heads=1,intermediate=512."
)
@_DATA
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option(
    "--prompts",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    help="Calibration texts; written by the target where there is no --data.",
)
@_SKIP
@_FORCE
@_JSON
def prune(target_folder: Path, keep: str, data: tuple[Path, ...], out: Path, prompts: int, skip_broken: bool, force: bool, as_json: bool) -> None:  # fmt: skip
    """Make a smaller model out of a larger one; the result is an ordinary Hugging Face folder, to be healed by training."""
    from outrider_cloud.model.loading import BUNDLED, bundled_model  # noqa: PLC0415
    from outrider_cloud.train.documents import Reading  # noqa: PLC0415
    from outrider_cloud.train.prune import Keep  # noqa: PLC0415
    from outrider_cloud.train.pruning import prune_folder  # noqa: PLC0415

    if out.exists() and any(out.iterdir()) and not force:
        raise ConfigError(f"{out} exists", hint="--force replaces it")
    folder = bundled_model() if str(target_folder) == BUNDLED else target_folder
    report = prune_folder(folder, Keep.parse(keep), data, out, prompts, Reading(skip_broken))
    console = Console(stderr=as_json)
    console.print(
        f"{out}: {report['parameters_after'] / 1e6:.2f} of {report['parameters_before'] / 1e6:.2f} M parameters, layers "
        f"{report['layers_kept']} kept, loss {report['loss_before']:.3f} -> {report['loss_after']:.3f} nats before healing",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    if as_json:
        click.echo(json.dumps(report))


@train.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the smart-home data.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for rows, table.json and table.md; finished rows are not made again.",
)
@click.option("--steps", type=click.IntRange(1), default=400, show_default=True, help="Updates of every row.")
@click.option(
    "--prompts",
    type=click.IntRange(1),
    default=3000,
    show_default=True,
    help="Texts that the target writes, for all rows.",
)
@click.option("--row", "names", multiple=True, help="Only rows whose name holds this text.")
@_JSON
def table(data: Path, out: Path, steps: int, prompts: int, names: tuple[str, ...], as_json: bool) -> None:
    """Compare initialisations, data and losses on the bundled pair: the same size, steps and tokens in every row."""
    from outrider_cloud.bench.machine import machine  # noqa: PLC0415
    from outrider_cloud.train.distillation import DistilConfig  # noqa: PLC0415
    from outrider_cloud.train.fit import FitConfig  # noqa: PLC0415
    from outrider_cloud.train.home_table import home_table  # noqa: PLC0415
    from outrider_cloud.train.table import ROWS, as_markdown  # noqa: PLC0415

    console = Console(stderr=True)
    fit = FitConfig(steps, warmup_steps=30, checkpoint_every=100, validate_every=steps)
    made = home_table(data, out, DistilConfig(prompts=prompts, rounds=5), fit, console.log)
    rows = made.run([row for row in ROWS if not names or any(name in row.name for name in names)])
    whole = {"machine": machine(), "steps": steps, "prompts": prompts, "rows": rows}
    (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "table.md").write_text(as_markdown(rows))
    click.echo(json.dumps(whole) if as_json else as_markdown(rows))


@train.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder of the smart-home data.",
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option("--each", type=click.IntRange(1), default=240, show_default=True, help="Requests of a domain at most.")
def requests(data: Path, out: Path, each: int) -> None:
    """Write the held-out requests of the bundled pair's data, a file per domain, for `outrider train eval --data`."""
    from outrider_cloud.train.requests import held_out_requests, write_requests  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    for domain, rows in held_out_requests(data, each).items():
        write_requests(out / f"{domain}.jsonl", rows)
        click.echo(f"{out / domain}.jsonl: {len(rows)} requests")


def _work(out: Path, work: Path | None, *, force: bool) -> Path:
    place = work or out.with_name(f"{out.name}.work")
    if force and (place / "checkpoint.pt").exists():
        shutil.rmtree(place)
    return place


if __name__ == "__main__":
    sys.exit(train())
