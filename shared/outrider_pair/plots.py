"""Plots of an evaluation: curves and bars with intervals, drawn into PNG files. Needs matplotlib."""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

_DPI = 120
_SIZE = (6.0, 3.7)  # inches
_COLUMN = 4  # names of a legend in one column at most
_COLOURS = ("#2364aa", "#e4572e", "#17924b", "#8a4fbf", "#c48a00", "#4d5560")


@dataclass(frozen=True)
class Series:
    """One line, or one colour of bars.

    Attributes:
        name: For the legend.
        x: Places on the axis; names for bars.
        y: Values.
        low, high: Ends of the values' intervals; empty without.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @property
    def errors(self) -> list[list[float]] | None:
        """Distances [2, values] to the ends of the intervals, as matplotlib wants them."""
        if not self.low:
            return None
        below = [max(0.0, y - low) for y, low in zip(self.y, self.low, strict=True)]
        return [below, [max(0.0, high - y) for y, high in zip(self.y, self.high, strict=True)]]


def pyplot() -> Any:
    """Matplotlib's drawing module, writing into files.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        importlib.import_module("matplotlib").use("Agg")
        return importlib.import_module("matplotlib.pyplot")
    except ModuleNotFoundError:
        raise ConfigError(
            "plots need matplotlib, which is not installed", hint="pip install 'outrider[train]'"
        ) from None


def draw_lines(
    path: Path, series: Sequence[Series], *, title: str, x: str, y: str, bottom: float | None = 0, log: bool = False
) -> Path:
    """A curve per series, with bands where they have intervals.

    Args:
        path: PNG file to write.
        series: Curves; `x` are numbers.
        title: Above the plot; likewise `x` and `y` beside the axes.
        x: What lies across.
        y: What lies upwards.
        bottom: Least value shown; None leaves it to the data.
        log: Whether the horizontal axis is logarithmic.
    """
    with _axes(path, title, x, y) as axes:
        for colour, each in zip(_colours(len(series)), series, strict=True):
            axes.plot(each.x, each.y, marker="o", markersize=4, color=colour, label=each.name)
            if each.low:
                axes.fill_between(each.x, each.low, each.high, color=colour, alpha=0.15, linewidth=0)
        if log:
            axes.set_xscale("log")
        if bottom is not None:
            axes.set_ylim(bottom=bottom)
    return path


def draw_bars(path: Path, series: Sequence[Series], *, title: str, y: str, ticks: Sequence[float] = ()) -> Path:
    """Groups of bars, one group per name on the axis and one colour per series, with whiskers for intervals.

    Args:
        path: PNG file to write.
        series: Bars; `x` are names.
        title: Above the plot; likewise `y` beside the axis.
        y: What lies upwards.
        ticks: Of the vertical axis, which begins at the first; by default what fits the data, from nothing on.
    """
    with _axes(path, title, "", y) as axes:
        width = 0.8 / len(series)
        for number, (colour, each) in enumerate(zip(_colours(len(series)), series, strict=True)):
            places = [i + (number - (len(series) - 1) / 2) * width for i in range(len(each.x))]
            axes.bar(places, each.y, width * 0.92, yerr=each.errors, capsize=2, color=colour, label=each.name)
        axes.margins(y=0.35)  # room for the legend, above the bars
        if ticks:
            axes.set_yticks(ticks)
            axes.set_ylim(ticks[0], ticks[-1] + 0.35 * (ticks[-1] - ticks[0]))
        names = [str(name) for name in series[0].x]
        axes.set_xticks(range(len(names)), names)
    return path


@contextlib.contextmanager
def _axes(path: Path, title: str, x: str, y: str) -> Iterator[Any]:
    plt = pyplot()
    figure, axes = plt.subplots(figsize=_SIZE)
    try:
        yield axes
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize="small", frameon=False, ncols=1 + (len(axes.get_legend_handles_labels()[1]) > _COLUMN))
        figure.tight_layout()
        # Without the version of matplotlib in it, the same figures give the same file.
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def _colours(count: int) -> list[str]:
    return [_COLOURS[i % len(_COLOURS)] for i in range(count)]
