"""`outrider train`: make the best draft for a target, and prove it.

Commands import what they need when they run, so that `--help` is quick and the group works without the [train] extra.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from outrider_cloud.train.options import (
    COMPILE,
    DATA,
    FORCE,
    HOME,
    JSON,
    MODEL_OUT,
    SET,
    SKIP,
    STEPS,
    TARGET,
    WORK,
    check_out,
    distilling,
    going_on,
    model_folder,
    overrides,
    recipe_option,
    start_anew,
    tell,
    teller,
    work_folder,
)
from outrider_shared.cli import TrainingCommands
from outrider_shared.logs import configure_logs


@click.group(cls=TrainingCommands)
def train() -> None:
    """Train targets and drafts: from data, from the target's own samples, or by pruning."""
    configure_logs()


@train.command()
@recipe_option("bundled-target, bundled-target-further")
@DATA
@MODEL_OUT
@WORK
@STEPS
@COMPILE
@click.option("--init", help="Model folder to go on from, with its tokenizer ('bundled': the target that ships).")
@click.option("--tokenizer", help="Folder or tokenizer.json to use instead of training one.")
@SET
@SKIP
@FORCE
@JSON
def target(config: str, data: tuple[Path, ...], out: Path, work: Path | None, sets: tuple[str, ...], skip_broken: bool, force: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Train a target: any Hugging Face causal configuration on any texts. Goes on where it was cut off."""
    from outrider_cloud.train.loop.world import joined  # noqa: PLC0415
    from outrider_cloud.train.runs.target import TargetRun  # noqa: PLC0415
    from outrider_cloud.train.settings import TargetRecipe, read_recipe  # noqa: PLC0415
    from outrider_cloud.train.texts.documents import Reading  # noqa: PLC0415

    recipe = read_recipe(TargetRecipe, config, overrides(sets, **flags))
    check_out(out, force=force, holds="config.json")
    place = work_folder(out, work)
    with going_on(place), joined() as world:
        if force:
            start_anew(place, world)
        say = teller(world, as_json=as_json)
        figures = TargetRun(recipe, data, out, place, world, Reading(skip_broken), say).run()
        before = f"{figures['before']['valid']:.3f} -> " if "before" in figures else ""
        say(f"{out}: {figures['parameters'] / 1e6:.2f} M parameters, held-out loss {before}{figures['valid']:.3f} nats")
        tell(figures | {"path": str(out)}, world, as_json=as_json)


@train.command()
@distilling
@recipe_option("bundled-draft, bundled-further, own-samples, stories-draft")
@click.option(
    "--init",
    "student__init",
    help="prune (of the target), scratch, or a draft's folder to go on from ('bundled': the one that ships).",
)
@click.option(
    "--keep", help="With --init prune, instead of the recipe's: what stays, such as layers=2,hidden=128, or share=0.25."
)
def draft(target_folder: Path, config: str, data: tuple[Path, ...], out: Path, work: Path | None, keep: str | None, sets: tuple[str, ...], skip_broken: bool, force: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip  # noqa: PLR0913, PLR0917 - flags
    """Distil a draft for a target and make its pack. Without --data it learns from the target's own samples alone."""
    from outrider_cloud.pack.export import Request, export_pack  # noqa: PLC0415
    from outrider_cloud.train.loop.world import joined  # noqa: PLC0415
    from outrider_cloud.train.prune.keep import Keep  # noqa: PLC0415
    from outrider_cloud.train.runs.draft import DraftRun  # noqa: PLC0415
    from outrider_cloud.train.settings import DraftRecipe, read_recipe  # noqa: PLC0415
    from outrider_cloud.train.texts.documents import Reading  # noqa: PLC0415
    from outrider_shared.packs import MANIFEST, Precision  # noqa: PLC0415

    over = overrides(sets, **flags)
    if keep:
        over |= {f"student.keep.{name}": value for name, value in vars(Keep.parse(keep)).items()}
    recipe = read_recipe(DraftRecipe, config, over)
    folder = model_folder(target_folder)
    check_out(out, force=force, holds=MANIFEST)
    place = work_folder(out, work)
    with going_on(place), joined() as world:
        if force:
            start_anew(place, world)
        say = teller(world, as_json=as_json)
        figures = DraftRun(folder, recipe, data, place, world, Reading(skip_broken), say).run()
        if world.leads:
            name = recipe.name or out.name
            made = export_pack(Request(place / "draft", out, Precision(recipe.precision), name, force=force))
            for found in figures["acceptance"]:
                say(
                    f"T={found['temperature']:g}: {found['accepted']:.1%} accepted, {found['tree']['tokens_per_step']:.2f} tokens a step with a tree, {found['chain']['tokens_per_step']:.2f} with a chain of 4"
                )
            say(f"{made.path}: {figures['parameters'] / 1e6:.2f} M parameters, {recipe.precision}")
        tell(figures | {"path": str(out)}, world, as_json=as_json)


@train.command()
@distilling
@recipe_option("replay")
@click.option("--store", type=click.Path(path_type=Path), required=True, help="Folder that `outrider cloud serve --replay-dir` wrote.")  # fmt: skip
@click.option("--pack", required=True, help="The pack that the fleet drafts with, or 'bundled'.")
@click.option("--draft", "draft_folder", type=click.Path(path_type=Path), help="That pack's model folder; by default PACK.work/draft.")  # fmt: skip
@click.option("--skip-others", is_flag=True, help="Leave out what other targets refused, instead of refusing the store.")  # fmt: skip
def replay(target_folder: Path, config: str, data: tuple[Path, ...], out: Path, work: Path | None, store: Path, pack: str, draft_folder: Path | None, sets: tuple[str, ...], skip_broken: bool, skip_others: bool, force: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip  # noqa: PLR0913, PLR0917 - flags
    """Train a pack's draft further, on what fleets reported: where drafts were refused, by leave of the devices."""
    from outrider_cloud.model.loading import BUNDLED, bundled_draft  # noqa: PLC0415
    from outrider_cloud.pack.export import Request, export_pack  # noqa: PLC0415
    from outrider_cloud.train.loop.world import joined  # noqa: PLC0415
    from outrider_cloud.train.runs.replay import ReplayRun, verdict  # noqa: PLC0415
    from outrider_cloud.train.settings import ReplayRecipe, read_recipe  # noqa: PLC0415
    from outrider_cloud.train.texts.documents import Reading  # noqa: PLC0415
    from outrider_cloud.train.texts.reported import ReportedSource  # noqa: PLC0415
    from outrider_shared.packs import MANIFEST, Precision  # noqa: PLC0415

    recipe = read_recipe(ReplayRecipe, config, overrides(sets, **flags))
    folder = model_folder(target_folder)
    before = Path(f"{pack}.work")
    start = draft_folder or (bundled_draft() if pack == BUNDLED else before / "draft")
    check_out(out, force=force, holds=MANIFEST)
    place = work_folder(out, work)
    source = ReportedSource(store, folder, recipe.replay, recipe.data.longest, skip_others)
    with going_on(place), joined() as world:
        if force:
            start_anew(place, world)
        say = teller(world, as_json=as_json)
        run = ReplayRun(folder, start, before, recipe, data, source, place, world, Reading(skip_broken), say)
        figures = run.run()
        if world.leads:
            name = recipe.name or out.name
            made = export_pack(Request(place / "draft", out, Precision(recipe.precision), name, force=force))
            run.forget()
            old, new = figures["before"], figures["after"]
            say(
                f"refused of what was reported: {old['valid']:.1%} -> {new['valid']:.1%}; "
                f"elsewhere: {old['valid_elsewhere']:.1%} -> {new['valid_elsewhere']:.1%}"
            )
            doubt = verdict(old, new)
            if doubt:
                say(doubt)
            say(f"{made.path}: {recipe.precision}")
        tell(figures | {"path": str(out)}, world, as_json=as_json)


@train.command()
@TARGET
@click.option(
    "--keep",
    required=True,
    help="What stays, such as layers=4,hidden=192,heads=2,kv_heads=1,intermediate=512, or share=0.5.",
)
@DATA
@MODEL_OUT
@click.option(
    "--prompts",
    type=click.IntRange(8),
    default=256,
    show_default=True,
    help="Calibration texts; written by the target where there is no --data.",
)
@SKIP
@FORCE
@JSON
def prune(target_folder: Path, keep: str, data: tuple[Path, ...], out: Path, prompts: int, skip_broken: bool, force: bool, as_json: bool) -> None:  # fmt: skip
    """Make a smaller model out of a larger one; the result is an ordinary Hugging Face folder, to be healed by training."""
    from outrider_cloud.train.prune.keep import Keep  # noqa: PLC0415
    from outrider_cloud.train.runs.prune import prune_folder  # noqa: PLC0415
    from outrider_cloud.train.texts.documents import Reading  # noqa: PLC0415

    check_out(out, force=force, holds="config.json")
    folder = model_folder(target_folder)
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
@HOME
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
@JSON
def table(data: Path, out: Path, steps: int, prompts: int, names: tuple[str, ...], as_json: bool) -> None:
    """Compare initialisations, data and losses on the bundled pair: the same size, steps and tokens in every row."""
    from outrider_cloud.bench.machine import machine  # noqa: PLC0415
    from outrider_cloud.train.distil.distillation import DistilConfig  # noqa: PLC0415
    from outrider_cloud.train.distil.table import ROWS, as_markdown  # noqa: PLC0415
    from outrider_cloud.train.home.table import home_table  # noqa: PLC0415
    from outrider_cloud.train.loop.config import FitConfig  # noqa: PLC0415

    console = Console(stderr=True)
    fit = FitConfig(steps, warmup_steps=30, checkpoint_every=100, validate_every=steps)
    made = home_table(data, out, DistilConfig(prompts=prompts, rounds=5), fit, console.log)
    rows = made.run([row for row in ROWS if not names or any(name in row.name for name in names)])
    whole = {"machine": machine(), "steps": steps, "prompts": prompts, "rows": rows}
    (out / "table.json").write_text(json.dumps(whole, indent=1) + "\n")
    (out / "table.md").write_text(as_markdown(rows))
    click.echo(json.dumps(whole) if as_json else as_markdown(rows))


@train.command()
@HOME
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option("--each", type=click.IntRange(1), default=240, show_default=True, help="Requests of a domain at most.")
def requests(data: Path, out: Path, each: int) -> None:
    """Write the held-out requests of the bundled pair's data, a file per domain, for `outrider train eval --data`."""
    from outrider_cloud.train.home.requests import held_out_requests, write_requests  # noqa: PLC0415

    out.mkdir(parents=True, exist_ok=True)
    for domain, rows in held_out_requests(data, each).items():
        write_requests(out / f"{domain}.jsonl", rows)
        click.echo(f"{out / domain}.jsonl: {len(rows)} requests")


if __name__ == "__main__":
    sys.exit(train())
