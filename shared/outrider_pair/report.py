"""An evaluation as a page: `report.html` with its plots inside, beside it the plots and every key as JSON."""

from __future__ import annotations

import base64
import html
import json
from typing import TYPE_CHECKING, Any

from outrider_pair.cells import TREE
from outrider_pair.plots import Series, draw_bars, draw_lines, pyplot
from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2430}"
    "h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid #dde2e8;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(24rem,1fr));gap:1rem}img{width:100%}"
    "code{background:#f1f4f7;padding:.1rem .3rem;overflow-wrap:anywhere}.big{font-size:2rem;font-weight:600}"
)


def check_can_draw() -> None:
    """Tell before hours are spent that the plots could not be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    pyplot()


def write_report(result: dict[str, Any], folder: Path) -> Path:
    """Write the page; returns its path.

    Raises:
        ConfigError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(result, indent=1) + "\n")
        page = folder / "report.html"
        page.write_text(_page(result, _plots(result, folder)), "utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write into {folder}: {error.strerror or error}") from error
    return page


def _plots(result: dict[str, Any], folder: Path) -> list[tuple[str, Path]]:
    """(what it shows, file) of each plot."""
    packs = result["packs"]
    return [
        ("Whiskers are 95 % bootstrap intervals over requests.", _by_domain(packs[0], folder / "domains.png")),
        ("Of the drafts that went so deep, how many were committed there.", _by_depth(packs[0], folder / "depth.png")),
        ("How often a guess of that margin was the target's choice.", _reliability(packs[0], folder / "margins.png")),
        ("What tells hits from misses; 0.5 is a coin.", _predictors(packs[0], folder / "predictors.png")),
        ("Lower quartile, context of 128 tokens, one thread.", _pass_times(packs, folder / "passes.png")),
    ]


def _by_domain(pack: dict[str, Any], path: Path) -> Path:
    domains = list(pack["acceptance"][0]["domains"])
    series = []
    for cell in pack["acceptance"]:
        rows = [cell["domains"][domain] for domain in domains]
        series.append(
            Series(
                f"{cell['shape']}, T = {cell['temperature']:g}",
                domains,
                [row["tokens_per_step"] for row in rows],
                [row["interval"][0] for row in rows],
                [row["interval"][1] for row in rows],
            )
        )
    return draw_bars(path, series, title="Tokens per cloud step", y="tokens per step")


def _by_depth(pack: dict[str, Any], path: Path) -> Path:
    series = [
        Series(
            f"T = {c['temperature']:g}", [r["depth"] for r in c["by_depth"]], [r["committed"] for r in c["by_depth"]]
        )
        for c in pack["acceptance"]
        if c["shape"] == TREE
    ]
    return draw_lines(path, series, title="Acceptance by depth", x="depth in the draft", y="share committed")


def _reliability(pack: dict[str, Any], path: Path) -> Path:
    series = [
        Series(f"T = {t}", [b["margin"] for b in row["reliability"]], [b["survival"] for b in row["reliability"]])
        for t, row in pack["temperatures"].items()
    ]
    if pack["survival"]:
        series.append(Series("prior of the pack", *zip(*pack["survival"], strict=True)))
    return draw_lines(path, series, title="Margin and survival", x="margin, nats", y="share of hits")


def _predictors(pack: dict[str, Any], path: Path) -> Path:
    names = {"margin": "margin", "probability": "draft probability", "entropy": "entropy"}
    series = [
        Series(
            title,
            [f"T = {t}" for t in pack["temperatures"]],
            [r["auc"][name] or 0 for r in pack["temperatures"].values()],
        )
        for name, title in names.items()
    ]
    return draw_bars(path, series, title="Telling hits from misses", y="AUC")


def _pass_times(packs: list[dict[str, Any]], path: Path) -> Path:
    series = [Series(p["precision"], [int(rows) for rows in p["pass_us"]], list(p["pass_us"].values())) for p in packs]
    return draw_lines(path, series, title="Time of a draft pass", x="rows", y="microseconds")


def _page(result: dict[str, Any], plots: list[tuple[str, Path]]) -> str:
    low, high = result["interval"]
    pack, target = result["packs"][0], result["target"]
    main = (
        f"<p><span class=big>{result['tokens_per_step']:.2f}</span> tokens per cloud step at T = "
        f"{result['temperature']:g} with {_text(result['shape'])}s ({low:.2f} to {high:.2f}), "
        f"{result['requests']} requests.</p>"
    )
    parts = [
        f"<h1>{_text(pack['name'])} ({_text(pack['precision'])}) drafting for {_text(target['name'])}</h1>",
        main,
        f"<p><code>{_text(result['command'])}</code><br>{_text(result['machine'])}</p>",
        _calls(target["calls"]),
        "<h2>Acceptance</h2>",
        _acceptance(result),
        _ratios(result["against"]),
        "<h2>Plots</h2><div class=plots>",
        *(_image(path, told) for told, path in plots),
        "</div><h2>Place by place</h2>",
        _places(result),
        "<h2>Loss on held-out answers</h2>",
        _bits(result),
    ]
    title = f"Evaluation of {_text(pack['name'])}"
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def _calls(calls: dict[str, Any] | None) -> str:
    if not calls or calls["well_formed_share"] is None:
        return ""
    return (
        f"<p>Of {calls['with_call']} greedy answers with a tool call, <b>{calls['well_formed_share']:.0%}</b> parse "
        f"and name a device of the house.{_compared(calls)}</p>"
    )


def _compared(calls: dict[str, Any]) -> str:
    if not calls["compared"] or not calls["wanted"]:
        return ""
    return (
        f" Of {calls['wanted']} requests that ask for a call, {calls['wanted_well_formed_share']:.0%} get well-formed "
        f"ones; {calls['same_share']:.0%} of all {calls['compared']} answers call exactly what the data's do."
    )


def _acceptance(result: dict[str, Any]) -> str:
    rows = []
    for pack in result["packs"]:
        for cell in pack["acceptance"]:
            named = f"{pack['precision']}, {cell['shape']}, T = {cell['temperature']:g}"
            for domain, each in cell["domains"].items():
                low, high = each["interval"]
                rows.append(
                    [named, domain, each["requests"], f"{each['tokens_per_step']:.2f}", f"{low:.2f} to {high:.2f}",
                     f"{each['accepted_of_drafted']:.0%}"]
                )  # fmt: skip
    return _table(["drafts", "domain", "requests", "tokens/step", "95 %", "drafted nodes accepted"], rows)


def _ratios(against: dict[str, Any] | None) -> str:
    if against is None:
        return ""
    rows = [
        [r["pack"], r["shape"], f"{r['temperature']:g}", f"{r['ratio']:.3f}", "{:.3f} to {:.3f}".format(*r["interval"])]
        for r in against["ratios"]
        if r["pack"] != against["base"]
    ]
    title = f"<h2>Against {_text(against['base'])}, same requests and noise</h2>"
    return title + _table(["pack", "drafts", "T", "tokens/step, ratio", "95 %"], rows)


def _places(result: dict[str, Any]) -> str:
    rows = [
        [pack["precision"], t, each["places"],
         f"{each['tv']:.4f}", f"{each['accepted']:.3f}", f"{each['among_two']:.3f}",
         *("-" if value is None else f"{value:.3f}" for value in each["auc"].values())]
        for pack in result["packs"] for t, each in pack["temperatures"].items()
    ]  # fmt: skip
    heads = ["pack", "T", "places", "TV to the target", "accepted", "among two", "AUC margin", "probability", "entropy"]
    return _table(heads, rows)


def _bits(result: dict[str, Any]) -> str:
    rows = [
        [pack["precision"], domain, each["text"], f"{each['draft']:.3f}", f"{each['target']:.3f}",
         f"{each['nats_per_token']['draft']:.3f}", f"{each['nats_per_token']['target']:.3f}"]
        for pack in result["packs"]
        for domain, each in pack["bits_per_byte"].items()
    ]  # fmt: skip
    heads = ["pack", "domain", "text", "draft, bits a byte", "target", "draft, nats a token", "target"]
    return _table(heads, rows)


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{_text(head)}</th>" for head in heads) + f"</tr>{body}</table>"


def _image(path: Path, told: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{_text(path.stem)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{_text(told)}</figcaption></figure>"


def _text(value: object) -> str:
    shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
    return html.escape(shown)
