"""`outrider pack`: make a pack for the edge from a Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from outrider_shared.errors import ConfigError
from outrider_shared.packs import Pack, Precision

if TYPE_CHECKING:
    from outrider_cloud.pack.export import Request

_LOSSY_TV = 0.05  # of total variation: worth a word to the user


@click.command()
@click.option("--model", type=click.Path(path_type=Path), required=True, help="Hugging Face folder of the draft.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Pack to write.")
@click.option(
    "--precision",
    type=click.Choice([str(precision) for precision in Precision]),
    default=str(Precision.FP32),
    show_default=True,
    help="How to store the weights; int8 is right for drafts above a few million parameters.",
)
@click.option("--name", default="", help="Name of the draft; the folder's name by default.")
@click.option("--licence", default="", help="Licence of the weights; by default what the folder says.")
@click.option("--attribution", default="", help="Who is to be credited; by default what the folder says.")
@click.option("--force", is_flag=True, help="Replace a pack that is already at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON on stdout.")
def pack(
    model: Path, out: Path, precision: str, name: str, licence: str, attribution: str, force: bool, as_json: bool
) -> None:
    """Make a pack: the model as an ONNX graph for the edge, checked against the original."""
    try:
        from outrider_cloud.pack.export import Request  # noqa: PLC0415 - the [train] extra is optional
    except ImportError as error:
        raise ConfigError(f"packing needs {error.name}", hint="pip install 'outrider[train]'") from error
    made = _export(Request(model, out, Precision(precision), name, licence, attribution, force))
    if as_json:
        click.echo(json.dumps({"path": str(made.path), **dataclasses.asdict(made.manifest)}, ensure_ascii=False))
    else:
        _print_summary(made)


def _export(request: Request) -> Pack:
    from outrider_cloud.pack.export import STEPS, export_pack  # noqa: PLC0415 - as above

    # The builder's output is redirected, so the console must hold on to the real stderr.
    console = Console(file=sys.stderr)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(STEPS))

        def report(step: str) -> None:
            progress.update(task, description=f"{request.out.name}: {step}")

        return export_pack(request, report)


def _print_summary(made: Pack) -> None:
    manifest, console = made.manifest, Console()
    size_mb = sum(entry.size_bytes for entry in manifest.files.values()) / 1e6
    result = manifest.evaluation["export"]
    console.print(
        f"{made.path}: {manifest.name}, {manifest.precision}, {size_mb:.1f} MB", highlight=False, soft_wrap=True
    )
    console.print(
        f"against the model over {result['positions']} sampled positions: total variation {result['tv']:.4f}, "
        f"same first choice {result['top1']:.1%}",
        highlight=False,
        soft_wrap=True,
    )
    if result["tv"] > _LOSSY_TV:
        console.print(f"[yellow]expect up to {result['tv']:.0%} less acceptance than with fp32[/yellow]")
