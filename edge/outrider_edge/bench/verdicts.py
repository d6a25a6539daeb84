"""Which bars the link is held to, and which of them a run has reached: each bar beside its worst cell.

A bar is a bound on a figure of one cell, and which cells it is for. Bars are for links without stalls and of unlimited
rate, where the figures that they compare were measured; texts are compared everywhere.

Speeds are compared request by request, busy times of many devices round by round and device by device, and those are
few: beside a ratio stands the interval that holds 95 of 100 of those drawn anew from the same (paired bootstrap). A
miss whose interval has the bound in it is open.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from outrider_edge.bench.doubt import interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

Figure = dict[str, Any]


def _of_walls(ours: Figure, base: Figure) -> tuple[Any, Any]:
    """A ratio of speeds is the inverse of one of times."""
    return [base.get("walls_s", ())], [ours.get("walls_s", ())]


def _of_busy(ours: Figure, base: Figure) -> tuple[Any, Any]:
    return ours.get("busy_ms", ()), base.get("busy_ms", ())


@dataclass(frozen=True, slots=True)
class Bar:
    """One bound.

    Attributes:
        name: What is bounded.
        least, most: The bound; one of them.
        measured: (methods of a cell) -> the figure. A KeyError says that this run has no such method.
        applies: (round-trip time, step time; both ms, 0 is the model's own step) -> whether it is for that cell.
        pair: (methods of a cell) -> those that are compared, ours first; None where nothing is drawn anew.
        drawn: (figures of ours, of the other) -> what the ratio is drawn from, see `doubt.interval`.
        rows_each: With many devices: rows of a step for each of them that it needs.
    """

    name: str
    measured: Callable[[Figure], float]
    least: float | None = None
    most: float | None = None
    applies: Callable[[float, float], bool] = lambda _rtt_ms, _step_ms: True
    pair: Callable[[Figure], tuple[str, str]] | None = None
    drawn: Callable[[Figure, Figure], tuple[Any, Any]] = _of_walls
    rows_each: int = 0

    @property
    def bound(self) -> str:
        """As text."""
        return f">= {self.least:g}" if self.least is not None else f"<= {self.most:g}"

    def slack(self, measured: float) -> float:
        """How far a figure is on the right side; negative misses."""
        return measured - self.least if self.least is not None else (self.most or 0.0) - measured

    def doubt(self, methods: Figure) -> tuple[float, float] | None:
        """The interval of the figure; None where there is too little to draw from."""
        if self.pair is None:
            return None
        above, below = self.drawn(*(methods[name] for name in self.pair(methods)))
        counts = [len(one) for one in above]
        return interval(above, below) if counts == [len(one) for one in below] and sum(counts) > 1 else None


def _speed(name: str, ours: str, base: str, least: float, **more: Any) -> Bar:
    return Bar(name, _ratio("tokens_per_s", ours, base), least=least, pair=lambda _: (ours, base), **more)


def _ratio(metric: str, ours: str, base: str) -> Callable[[Figure], float]:
    return lambda methods: float(methods[ours][metric] / methods[base][metric])


def _to_better(metric: str, better: Callable[..., float]) -> Callable[[Figure], float]:
    return lambda methods: float(methods["ours-auto"][metric] / better(methods[pace][metric] for pace in _PACES))


def _to_engine_alone(methods: Figure) -> float:
    """Co-located speculation's busy time less its drafter's: what is left where the edges draft."""
    base = methods["colocated"]
    alone = base["cloud_busy_ms_per_token"] - base["cloud_draft_ms_per_token"]
    return float(methods["ours-auto+draft"]["cloud_busy_ms_per_token"] / alone)


_BUSY = "cloud_busy_ms_per_token"
_PACES = ("ours-ahead", "ours-hold")

CELL_BARS = (
    _speed("ahead: tokens/s of plain streaming", "ours-ahead", "plain", 0.98),
    _speed(
        "ahead: tokens/s of plain streaming, round trip up to 50 ms, step from 25 ms", "ours-ahead", "plain", 1.5,
        applies=lambda rtt_ms, step_ms: rtt_ms <= 50 and step_ms >= 25,
    ),
    _speed("ahead: tokens/s of synchronous speculation", "ours-ahead", "sync", 1.0),
    _speed(
        "ahead: tokens/s of synchronous speculation, round trip from 100 ms", "ours-ahead", "sync", 1.3,
        applies=lambda rtt_ms, _step_ms: rtt_ms >= 100,
    ),
    _speed("auto with a draft in the cloud: tokens/s of co-located", "ours-auto+draft", "colocated", 0.98),
    Bar("hold: cloud busy time of plain streaming", _ratio(_BUSY, "ours-hold", "plain"), most=0.5),
    Bar(
        "auto: tokens/s of the better of ahead and hold", _to_better("tokens_per_s", max), least=0.95,
        pair=lambda methods: ("ours-auto", max(_PACES, key=lambda pace: float(methods[pace]["tokens_per_s"]))),
    ),
    Bar(
        "auto: bytes up per token, round trip 50 ms", lambda methods: float(methods["ours-auto"]["up_bytes_per_token"]),
        most=16.0, applies=lambda rtt_ms, _step_ms: rtt_ms == 50,
    ),
    Bar(
        "auto: bytes down per token, round trip 50 ms",
        lambda methods: float(methods["ours-auto"]["down_bytes_per_token"]),
        most=12.0, applies=lambda rtt_ms, _step_ms: rtt_ms == 50,
    ),
)  # fmt: skip
LOAD_BARS = (
    Bar(
        "many devices, auto with a draft in the cloud: busy time of co-located without its drafter's", _to_engine_alone,
        most=1.0, pair=lambda _: ("ours-auto+draft", "colocated"), drawn=_of_busy,
    ),
    Bar(  # of n rows a device brings at most n tokens: with two, a half is the limit
        "many devices, hold: cloud busy time of plain streaming", _ratio(_BUSY, "ours-hold", "plain"), most=0.5,
        pair=lambda _: ("ours-hold", "plain"), drawn=_of_busy, rows_each=4,
    ),
    Bar(
        "many devices, auto: cloud busy time of the better of ahead and hold", _to_better(_BUSY, min), most=1.05,
        pair=lambda methods: ("ours-auto", min(_PACES, key=lambda pace: float(methods[pace][_BUSY]))), drawn=_of_busy,
    ),
)  # fmt: skip
_SAME = Bar("the text of plain streaming, in parts of the cells", lambda methods: float(_same(methods)), least=1.0)
_TOLD = "a dead link is told, s after it died"
# What an event loop's timer may be late.
_TIMER_S = 0.05


def verdicts(engines: Sequence[Figure]) -> list[dict[str, Any]]:
    """Every bar with what was measured, in the order of the bars; those that nothing was measured for are left out.

    Returns:
        Objects with `bar`, `bound`, `worst` (the figure of the worst cell), `cell` (which that is), `cells` (how many
        it is for), `held` (how many reach it), `reached` (whether all do), `missed` (figure by cell), and where ratios
        are drawn anew `interval` (of the worst cell: low, high) and `open` (misses whose interval has the bound).
    """
    cells = [(_place(engine, cell), engine["step_ms"] or 0.0, cell) for engine in engines for cell in engine["cells"]]
    loads = [
        (f"{load['sessions']} devices, {_place(engine, load)}", engine["step_ms"] or 0.0, load)
        for engine in engines
        for load in engine.get("high_load", [])
    ]
    clean = [entry for entry in cells if _is_clean(entry[2])]
    judged = [
        *(_judge(bar, clean) for bar in CELL_BARS),
        *(_judge(bar, [entry for entry in loads if _is_clean(entry[2])]) for bar in LOAD_BARS),
        _judge(_SAME, [*cells, *loads]),
        *map(_dead, (engine for engine in engines if "dead_link" in engine)),
    ]
    return [verdict for verdict in judged if verdict is not None]


def _judge(bar: Bar, entries: Sequence[tuple[str, float, Figure]]) -> dict[str, Any] | None:
    found, intervals = dict[str, float](), dict[str, tuple[float, float]]()
    for place, step_ms, cell in entries:
        if not bar.applies(cell["link"]["rtt_ms"], step_ms) or not _has_rows(bar, cell):
            continue
        try:
            found[place] = bar.measured(cell["methods"])
            doubt = bar.doubt(cell["methods"])
        except (KeyError, ZeroDivisionError):
            continue  # the run left that method out
        if doubt is not None:
            intervals[place] = doubt
    return _verdict(bar, found, intervals) if found else None


def _has_rows(bar: Bar, load: Figure) -> bool:
    return bool(load.get("rows", math.inf) >= bar.rows_each * load.get("sessions", 0))


def _verdict(
    bar: Bar, found: dict[str, float], intervals: dict[str, tuple[float, float]] | None = None
) -> dict[str, Any]:
    worst = min(found, key=lambda place: bar.slack(found[place]))
    missed = {place: figure for place, figure in found.items() if bar.slack(figure) < 0}
    return {
        "bar": bar.name,
        "bound": bar.bound,
        "worst": found[worst],
        "cell": worst,
        "cells": len(found),
        "held": len(found) - len(missed),
        "reached": not missed,
        "missed": missed,
        **_doubt(bar, worst, missed, intervals or {}),
    }


def _doubt(bar: Bar, worst: str, missed: Iterable[str], intervals: dict[str, tuple[float, float]]) -> dict[str, Any]:
    if worst not in intervals:
        return {}
    undecided = [place for place in missed if any(bar.slack(end) >= 0 for end in intervals.get(place, ()))]
    return {"interval": list(intervals[worst]), "open": undecided}


def _dead(engine: Figure) -> dict[str, Any]:
    modes = engine["dead_link"]["modes"]
    told = {f"offline {name}": float(mode["told_s"] or math.inf) for name, mode in modes.items()}
    most = max(float(mode["offline_after_s"]) for mode in modes.values()) + _TIMER_S
    return _verdict(Bar(_TOLD, _same, most=most), told)


def _same(methods: Figure) -> bool:
    return all(figure["identical_to_plain"] for figure in methods.values())


def _is_clean(cell: Figure) -> bool:
    return not cell["link"]["loss"] and not cell["link"]["rate_kbit"]


def _place(engine: Figure, cell: Figure) -> str:
    link = cell["link"]
    extra = [f"{link['rate_kbit']:g} kbit/s"] if link["rate_kbit"] else []
    extra += [f"{link['loss']:.0%} stalls"] if link["loss"] else []
    step = f"step {engine['step_ms']:g} ms" if engine["step_ms"] else "own step"
    return ", ".join([f"rtt {link['rtt_ms']:g} ms", *extra, step])


def verdict_table(judged: Sequence[dict[str, Any]]) -> Table:
    """For a terminal."""
    table = Table("bar", "bound", "worst", "where", "cells", "", title="what the link is held to")
    for row in _rows(judged):
        table.add_row(*row)
    return table


def _rows(judged: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for verdict in judged:
        held = f"{verdict['held']}/{verdict['cells']}"
        unheld = verdict["cells"] - verdict["held"]
        word = "pass" if not unheld else "open" if len(verdict.get("open", ())) == unheld else "MISS"
        low, high = verdict.get("interval", (0.0, 0.0))
        worst = f"{verdict['worst']:.2f}" + (f" ({low:.2f}-{high:.2f})" if high else "")
        yield verdict["bar"], verdict["bound"], worst, verdict["cell"], held, word
