"""`outrider train curve`: what pruning a target to several sizes costs, as a table, JSON and a plot."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from outrider_cloud.train.options import DATA, SET, SKIP, TARGET, going_on, model_folder, overrides, recipe_option
from outrider_pair.cli import typed_command
from outrider_shared.cli import TypedErrors
from outrider_shared.files import storage_errors
from outrider_shared.packs import Precision

if TYPE_CHECKING:
    from outrider_pair.curve import Curve

BUNDLED = "bundled"
_TEMPERATURES = (0.0, 0.7, 1.0)


@click.command()
@TARGET
@recipe_option("bundled-draft, own-samples")
@DATA
@click.option(
    "--share",
    "shares",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    multiple=True,
    default=[0.25, 0.5, 0.75],
    show_default=True,
    help="Of the target's parameters that stays; may come more than once.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for curve.json, curve.png, models and packs; a run that was cut off goes on.",
)
@click.option("--steps", "fit__steps", type=click.IntRange(1), help="Updates that heal each size.")
@click.option("--prompts", "distil__prompts", type=click.IntRange(1), help="Texts that the target writes, for all.")
@click.option("--precision", type=click.Choice([str(each) for each in Precision]), help="Of the packs.")
@click.option(
    "--requests",
    multiple=True,
    default=[BUNDLED],
    show_default=True,
    help="What sizes are judged on; as --data of `outrider train eval`.",
)
@click.option("--limit", type=click.IntRange(1), help="Requests of each file at most.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=96, show_default=True, help="Tokens of an answer at most."
)
@SET
@SKIP
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def curve(*, shares: tuple[float, ...], out: Path, as_json: bool, **flags: Any) -> None:
    """Prune a target to several sizes, heal each, and tell what each is worth as a draft and as a target."""
    from outrider_cloud.bench.machine import machine  # noqa: PLC0415 - keeps `--help` quick
    from outrider_pair.curve import draw  # noqa: PLC0415
    from outrider_pair.plots import pyplot  # noqa: PLC0415

    pyplot()  # tells before hours are spent that it is missing
    made = _prepare(out, flags)
    with going_on(out):
        rows = made.run(shares)
    settings = {"steps": made.recipe.fit.steps, "prompts": made.recipe.distil.prompts}
    told = {"machine": machine(), "command": typed_command("curve"), **settings, "rows": rows}
    with storage_errors(out):
        (out / "curve.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(rows, out / "curve.png")
    if as_json:
        click.echo(json.dumps(told))
    else:
        Console(highlight=False).print(*_lines(rows), sep="\n", soft_wrap=True)


def _prepare(out: Path, flags: dict[str, Any]) -> Curve:
    from outrider_cloud.model.loading import load_model  # noqa: PLC0415 - as above
    from outrider_cloud.train.settings import DraftRecipe, read_recipe  # noqa: PLC0415
    from outrider_cloud.train.texts.documents import Reading  # noqa: PLC0415
    from outrider_pair.cells import Plan  # noqa: PLC0415
    from outrider_pair.curve import Curve  # noqa: PLC0415
    from outrider_pair.texts import read_texts  # noqa: PLC0415

    over = {name: flags[name] for name in ("fit__steps", "distil__prompts", "precision")}
    recipe = read_recipe(DraftRecipe, flags["config"], overrides(flags["sets"], **over))
    folder, console, most = model_folder(flags["target_folder"]), Console(stderr=True), flags["max_tokens"]
    target = load_model(str(folder))
    texts = read_texts(
        list(flags["requests"]), target.tokenizer, target.chat_template,
        longest=target.context_length - most, limit=flags["limit"], skip_broken=flags["skip_broken"],
    )  # fmt: skip
    with storage_errors(out):
        out.mkdir(parents=True, exist_ok=True)

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    plan = Plan(texts.rows, _TEMPERATURES, most)
    return Curve(target, folder, recipe, flags["data"], plan, out, Reading(flags["skip_broken"]), say)


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    """A sentence a size."""
    found = []
    for row in rows:
        parts = [f"{row['share']:.0%}: {row['parameters'] / 1e6:.2f} M parameters"]
        for cell in row.get("as_draft", ()):
            low, high = cell["interval"]
            per_step = f"{cell['tokens_per_step']:.2f} tokens a step ({low:.2f}-{high:.2f})"
            parts.append(f"T = {cell['temperature']:g} {per_step}")
        quality = row["as_target"]
        if "tv" in quality:
            parts.append(f"total variation {quality['tv']:.3f}, greedy agreement {quality['greedy_agreement']:.1%}")
        if quality["calls"] and quality["calls"]["well_formed_share"] is not None:
            parts.append(f"well-formed tool calls {quality['calls']['well_formed_share']:.1%}")
        found.append("; ".join(parts))
    return found


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"curve": curve}).main(sys.argv[1:]))
