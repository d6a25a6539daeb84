"""An evaluation on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator


def tables(result: dict[str, Any]) -> Iterator[Table]:
    """Acceptance, the packs against each other where there are several, then what each pack is."""
    yield _acceptance(result)
    if result["against"] is not None:
        yield _against(result["against"])
    yield _packs(result)


def _acceptance(result: dict[str, Any]) -> Table:
    table = Table("pack", "T", "drafts", "domain", title="tokens per cloud step")
    for name in ("requests", "tokens/step", "95 %", "accepted"):
        table.add_column(name, justify="right")
    for pack in result["packs"]:
        for cell in pack["acceptance"]:
            rows = cell["domains"] if len(cell["domains"]) == 1 else {"all": cell, **cell["domains"]}
            for domain, row in rows.items():
                low, high = row["interval"]
                table.add_row(
                    f"{pack['name']} {pack['precision']}", f"{cell['temperature']:g}", cell["shape"], domain,
                    f"{row['requests']}", f"{row['tokens_per_step']:.2f}", f"{low:.2f}-{high:.2f}",
                    f"{row['accepted_of_drafted']:.0%}",
                )  # fmt: skip
        table.add_section()
    return table


def _against(against: dict[str, Any]) -> Table:
    table = Table("pack", "T", "drafts", title=f"tokens per step against {against['base']}, same requests and noise")
    for name in ("ratio", "95 %"):
        table.add_column(name, justify="right")
    for row in against["ratios"]:
        if row["number"] != against["base_number"]:
            low, high = row["interval"]
            table.add_row(
                row["pack"], f"{row['temperature']:g}", row["shape"], f"{row['ratio']:.3f}", f"{low:.3f}-{high:.3f}"
            )
    return table


def _packs(result: dict[str, Any]) -> Table:
    calls = result["target"]["calls"]
    share = calls and calls["well_formed_share"]
    told = f"; {share:.0%} of {calls['with_call']} greedy tool calls are well formed" if share is not None else ""
    if calls and calls["wanted"]:
        told += f", and the calls of {calls['same_share']:.0%} of all {calls['compared']} answers are the data's"
    table = Table("pack", "T", title=f"target {result['target']['name']}{told}")
    for name in ("MB", "us: 1/2/4/8 rows", "TV", "hit", "in two", "AUC margin/p/entropy"):
        table.add_column(name, justify="right")
    for pack in result["packs"]:
        for temperature, row in pack["temperatures"].items():
            table.add_row(
                f"{pack['name']} {pack['precision']}", temperature, f"{pack['size_bytes'] / 1e6:.1f}",
                "/".join(f"{micro:.0f}" for micro in pack["pass_us"].values()), f"{row['tv']:.3f}",
                f"{row['accepted']:.3f}", f"{row['among_two']:.3f}",
                "/".join("-" if value is None else f"{value:.2f}" for value in row["auc"].values()),
            )  # fmt: skip
    return table
