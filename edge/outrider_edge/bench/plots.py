"""`outrider bench plots`: a plot per metric, one panel per engine, round-trip time across; needs matplotlib."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

METRICS = {
    "tokens_per_s": "tokens/s",
    "tokens_per_s_p95": "tokens/s, p95 over requests",
    "ttft_ms_p50": "time to first token, ms (p50)",
    "cloud_steps_per_token": "cloud steps per token",
    "cloud_rows_per_token": "cloud rows per token",
    "cloud_lookup_rows_per_token": "rows of the cloud's lookups per token",
    "cloud_draft_rows_per_token": "rows of the cloud's drafts per token",
    "cloud_busy_ms_per_token": "cloud busy time per token, ms",
    "up_bytes_per_token": "bytes up per token (TCP, prompt aside)",
    "down_bytes_per_token": "bytes down per token (TCP, prompt aside)",
    "draft_ms_per_token": "draft time per token, ms",
    "wasted_drafts_per_token": "wasted drafts per token",
}


def matplotlib_pyplot() -> Any:
    """The module, drawing into files.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        raise ConfigError(
            "plots need matplotlib, which is not installed", hint="pip install 'outrider[bench]'"
        ) from None


@click.command()
@click.argument("result", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), default="plots", show_default=True, help="Folder of the plots.")
def plots(result: Path, out: Path) -> None:
    """Draw a plot per metric of RESULT, a JSON file that `outrider bench link --out` wrote."""
    try:
        engines = json.loads(result.read_text(encoding="utf-8"))["engines"]
        files = draw(engines, out)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"{result} is no result of `outrider bench link`: {error!r}") from error
    for file in files:
        click.echo(str(file))


def draw(engines: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """Write `METRIC.svg` for each metric; returns the files."""
    plt = matplotlib_pyplot()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for metric, title in METRICS.items():
        if any(metric not in figure for engine in engines for figure in engine["cells"][0]["methods"].values()):
            # A result of before this metric was measured.
            continue
        figure, panels = plt.subplots(1, len(engines), figsize=(4.2 * len(engines), 3.6), squeeze=False)
        for panel, engine in zip(panels[0], engines, strict=True):
            for name in _methods(engine):
                points = [(c["link"]["rtt_ms"], c["methods"][name][metric]) for c in engine["cells"]]
                panel.plot(*zip(*points, strict=True), marker="o", label=name)
            panel.set(title=engine["engine"], xlabel="round-trip time, ms", ylabel=title, ylim=(0, None))
        panels[0][0].legend(fontsize="small")
        figure.tight_layout()
        files.append(folder / f"{metric}.svg")
        figure.savefig(files[-1])
        plt.close(figure)
    return files


def _methods(engine: dict[str, Any]) -> list[str]:
    return [name for name in engine["cells"][0]["methods"] if not name.startswith("chain")]
