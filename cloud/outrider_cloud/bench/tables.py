"""Reports of the benches as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Column, Table


def table_of(told: dict[str, Any]) -> Table:
    """The table of a report."""
    return {"kernels": _kernels, "step": _steps, "peers": _peers}[told["bench"]](told)


def _kernels(told: dict[str, Any]) -> Table:
    table = Table("kernel", "largest error", "ours us", "GB/s", "of copy", "peers, us", title=told["note"])
    for r in told["results"]:
        if "kernel" not in r:
            table.add_row(r["name"], _why(r), "", _number(r.get("gb_per_s"), 0))
            continue
        ours = r["ours"] or {}
        peers = "; ".join(f"{name}: {_peer(peer)}" for name, peer in r["peers"].items())
        table.add_row(
            r["name"], f"{r['max_error']:.2g}", _number(ours.get("median_us"), 1), _number(r.get("gb_per_s"), 0),
            _share(r.get("of_copy")), peers,
        )  # fmt: skip
    return table


def _steps(told: dict[str, Any]) -> Table:
    table = Table(
        Column("", min_width=24),
        "rows",
        "wall us",
        "forward us",
        "around us",
        "tokens/s",
        "of copy",
        "x 1 row",
        "x natural",
    )
    for r in told["results"]:
        if "compiled" in r:
            by = r["compiled"]
            what = f"{_number(r['of_ours'], 2)} x ours" if "median_us" in by else by["missing"]
            table.add_row(r["name"], "", _number(by.get("median_us"), 0), what)
        elif "cases" not in r:
            table.add_row(r["name"], *(f"{k} {v}" for k, v in r.items() if k != "name"))
        for case in r.get("cases", ()):
            table.add_row(
                r["name"], str(case["rows"]), _number(case["wall"]["median_us"], 0),
                _number(case["forward"]["median_us"], 0), _number(case["around_forward_us"], 0),
                _number(case["tokens_per_s"], 0), _share(case["of_copy"]), _number(case["of_one_row"], 2),
                _number(case["of_natural"], 2),
            )  # fmt: skip
    return table


def _peers(told: dict[str, Any]) -> Table:
    over = {(r["peer"], r["mode"], r["sessions"]): r["ours_over_it"] for r in told["summary"]}
    table = Table(
        Column("", min_width=30), "mode", "sessions", "tokens/s", "least", "most", "per step", "ours is x times"
    )
    for r in told["results"]:
        if "tokens_per_s" not in r:
            table.add_row(r["name"], "", "", r.get("missing", _why(r)))
            continue
        ratio = over.get((r["peer"], r["mode"], r["sessions"]))
        rates = [_number(r[f"{which}tokens_per_s"], 0) for which in ("", "low_", "high_")]
        table.add_row(
            r["peer"], r["mode"], str(r["sessions"]), *rates,
            _number(r["tokens_per_step_and_session"], 2), _number(ratio, 2),
        )  # fmt: skip
    return table


def _why(told: dict[str, Any]) -> str:
    """Why there is no result."""
    reason: str = told.get("failed", told.get("left_out", ""))
    return reason


def _peer(told: dict[str, Any]) -> str:
    return told.get("missing") or _number(told["median_us"], 1)


def _number(value: float | None, places: int) -> str:
    return "" if value is None else f"{value:.{places}f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
