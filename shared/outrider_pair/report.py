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
    ":root{color-scheme:light dark;--ink:#1c2430;--faint:#5b6675;--line:#dde2e8;--tint:#f1f4f7;--page:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#e4e8ee;--faint:#9aa5b4;--line:#333c49;--tint:#232a34;--page:#161b22}}"
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;"
    "color:var(--ink);background:var(--page)}"
    "h1{font-size:1.5rem;line-height:1.25}h2{font-size:1.1rem;margin-top:2rem}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .7rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}"
    "th{vertical-align:bottom;font-weight:600;white-space:normal}"
    "td:first-child,th:first-child{text-align:left;padding-left:0;position:sticky;left:0;background:var(--page)}"
    "small,figcaption,.machine{color:var(--faint);font-size:.85em}"
    ".plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr));gap:1.2rem}"
    # Plots are drawn on white, whatever the page is.
    "figure{margin:0}img{display:block;width:100%;border-radius:6px;background:#fff}figcaption{padding-top:.3rem}"
    "code{background:var(--tint);padding:.1rem .3rem;border-radius:4px;overflow-wrap:anywhere}"
    ".big{font-size:2rem;font-weight:600}"
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
        (
            "Tokens per cloud step by domain; whiskers are 95 % bootstrap intervals over requests.",
            _by_domain(packs[0], folder / "domains.png"),
        ),
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
    return draw_bars(path, series, title="Telling hits from misses", y="AUC", ticks=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0))


def _pass_times(packs: list[dict[str, Any]], path: Path) -> Path:
    series = [
        Series(_named(p, {"packs": packs}), [int(rows) for rows in p["pass_us"]], list(p["pass_us"].values()))
        for p in packs
    ]
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
        f"<p><code>{_text(result['command'])}</code><br><span class=machine>{_text(result['machine'])}</span></p>",
        _calls(target["calls"]),
        "<h2>Acceptance</h2>",
        _acceptance(result),
        _ratios(result["against"]),
        f"<h2>Plots{'' if len(result['packs']) == 1 else f', of {_text(_named(pack, result))}'}</h2><div class=plots>",
        *(_image(path, told) for told, path in plots),
        "</div><h2>Place by place</h2>",
        _places(result),
        "<h2>Loss on held-out answers</h2>",
        _bits(result),
    ]
    title = f"Evaluation of {_text(pack['name'])}"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{title}</title><style>{_STYLE}</style>"
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
    """A line for each kind of drafts, a column for each domain."""
    domains = list(result["packs"][0]["acceptance"][0]["domains"])
    rows = [
        [f"{_named(pack, result)}, {cell['shape']}, T = {cell['temperature']:g}"]
        + [_Figure(cell["domains"][domain]) for domain in domains]
        for pack in result["packs"]
        for cell in pack["acceptance"]
    ]
    heads = [f"{name}, {result['packs'][0]['acceptance'][0]['domains'][name]['requests']} requests" for name in domains]
    told = "<p><small>Tokens per step, its 95 % interval, and how many of the drafted nodes were accepted.</small></p>"
    return told + _table(["drafts", *heads], rows)


def _ratios(against: dict[str, Any] | None) -> str:
    if against is None:
        return ""
    rows = [
        [r["pack"], r["shape"], f"{r['temperature']:g}", f"{r['ratio']:.3f}", "{:.3f} to {:.3f}".format(*r["interval"])]
        for r in against["ratios"]
        if r["number"] != against["base_number"]
    ]
    title = f"<h2>Against {_text(against['base'])}, same requests and noise</h2>"
    return title + _table(["pack", "drafts", "T", "tokens/step, ratio", "95 %"], rows)


def _places(result: dict[str, Any]) -> str:
    rows = [
        [_named(pack, result), t, each["places"],
         f"{each['tv']:.4f}", f"{each['accepted']:.3f}", f"{each['among_two']:.3f}",
         *("-" if value is None else f"{value:.3f}" for value in each["auc"].values())]
        for pack in result["packs"] for t, each in pack["temperatures"].items()
    ]  # fmt: skip
    heads = [
        "pack",
        "T",
        "places",
        "TV to the target",
        "accepted",
        "among two",
        "AUC: margin",
        "AUC: probability",
        "AUC: entropy",
    ]
    return _table(heads, rows)


def _bits(result: dict[str, Any]) -> str:
    rows = [
        [_named(pack, result), domain, each["text"], f"{each['draft']:.3f}", f"{each['target']:.3f}",
         f"{each['nats_per_token']['draft']:.3f}", f"{each['nats_per_token']['target']:.3f}"]
        for pack in result["packs"]
        for domain, each in pack["bits_per_byte"].items()
    ]  # fmt: skip
    heads = ["pack", "domain", "text", "draft, bits a byte", "target", "draft, nats a token", "target"]
    return _table(heads, rows)


class _Figure(dict[str, Any]):
    """Tokens per step of a domain, as a cell of a table."""

    def __str__(self) -> str:
        low, high = self["interval"]
        accepted = f"{self['accepted_of_drafted']:.0%}"
        return f"{self['tokens_per_step']:.2f} <small>{low:.2f} to {high:.2f}, {accepted}</small>"


def _named(pack: dict[str, Any], result: dict[str, Any]) -> str:
    """What tells a pack from the others: its precision, beside several of one precision its name and place, too."""
    packs = result["packs"]
    alike = [each for each in packs if each["precision"] == pack["precision"]]
    if len(alike) == 1:
        return str(pack["precision"])
    same = [each for each in alike if each["name"] == pack["name"]]
    place = f" ({next(i for i, each in enumerate(packs, 1) if each is pack)})" if len(same) > 1 else ""
    return f"{pack['name']} {pack['precision']}{place}"


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    cells = ("".join(f"<td>{each if isinstance(each, _Figure) else _text(each)}</td>" for each in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    head = "".join(f"<th scope=col>{_text(each)}</th>" for each in heads)
    return f"<div class=wide tabindex=0><table><tr>{head}</tr>{body}</table></div>"


def _image(path: Path, told: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    image = f'<img alt="{_text(told)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{_text(told)}</figcaption></figure>"


def _text(value: object) -> str:
    if isinstance(value, dict):
        return html.escape(", ".join(f"{k} {v:.1f}" if isinstance(v, float) else f"{k} {v}" for k, v in value.items()))
    return html.escape(str(value))
