"""What is left of the bundled target at 25, 50 and 75 % fewer parameters: quality and acceptance, as JSON and a plot.

    python tests/bench/pruning_curve.py --data DATA --work WORK --out curve.json --plot curve.png

Each smaller model is pruned and healed by `outrider train draft --init prune` (the same samples of the target for all),
judged as a target by `outrider train quality` and as a draft by `outrider train eval`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from outrider_cloud.train.plots import Series, draw_lines

KEEPS = {
    75: "layers=4,hidden=160,heads=2,kv_heads=1,intermediate=432",
    50: "layers=6,hidden=192,intermediate=528",
    25: "layers=6,intermediate=640",
}
_MODULES = {"draft": "outrider_cloud.train.cli", "eval": "outrider_pair.cli", "quality": "outrider_pair.quality"}
_SHARED = ("samples", "held-out")


def outrider(command: str, *arguments: str) -> str:
    """Run `outrider train COMMAND`; what it writes to standard output."""
    first = [sys.executable, "-m", _MODULES[command], command, *arguments]
    return subprocess.run(first, check=True, stdout=subprocess.PIPE, text=True).stdout


def heal(removed: int, flags: argparse.Namespace) -> Path:
    """Prune and distil, or take what an earlier run made; returns the pack."""
    pack = flags.work / f"less-{removed}.pack"
    if pack.exists():
        return pack
    place, whole = flags.work / f"less-{removed}.pack.work", flags.work / f"less-{max(KEEPS)}.pack.work"
    for name in _SHARED:
        if (whole / name).is_dir() and not (place / name).is_dir():
            shutil.copytree(whole / name, place / name)
    told = ("--keep", KEEPS[removed], "--steps", str(flags.steps), "--prompts", str(flags.prompts))
    data = ("--config", "bundled-draft", "--data", str(flags.data), "--set", "fit.warmup_steps=10")
    outrider("draft", "--target", "bundled", *data, *told, "--precision", "fp32", "--out", str(pack))
    return pack


def row(removed: int, pack: Path, acceptance: list[dict[str, Any]], asked: tuple[str, ...]) -> dict[str, Any]:
    """One size's figures."""
    folder = Path(f"{pack}.work")
    model = ("--model", str(folder / "draft"), "--weights", "native", "--against", "bundled")
    told = outrider("quality", *model, *asked, "--json")
    quality = json.loads(told.splitlines()[-1])
    wanted = ("places", "tv", "greedy_agreement", "perplexity", "perplexity_against")
    return {
        "removed": removed / 100,
        "keep": KEEPS[removed],
        "parameters": json.loads((folder / "figures.json").read_text())["parameters"],
        "quality": {name: quality[name] for name in wanted},
        "acceptance": [
            {
                name: cell[name]
                for name in ("temperature", "shape", "tokens_per_step", "interval", "accepted_of_drafted")
            }
            for cell in acceptance
        ],
    }


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Tokens per step at each temperature, and the share of equal greedy choices times ten, over what was removed."""
    across = [100 * each["removed"] for each in rows]
    series = []
    for temperature in sorted({cell["temperature"] for cell in rows[0]["acceptance"]}):
        cells = [
            next(c for c in each["acceptance"] if c["temperature"] == temperature and c["shape"] == "tree")
            for each in rows
        ]
        steps = [cell["tokens_per_step"] for cell in cells]
        low, high = zip(*(cell["interval"] for cell in cells), strict=True)
        series.append(Series(f"tokens per step as a draft, T = {temperature:g}", across, steps, low, high))
    agreed = [10 * each["quality"]["greedy_agreement"] for each in rows]
    series.append(Series("greedy agreement as a target, x 10", across, agreed))
    title = "The bundled target, pruned and healed"
    draw_lines(path, series, title=title, x="parameters removed, %", y="tokens per step")


def main() -> None:
    """All sizes, smallest first: the shortest to make."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "work", "out", "plot"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--requests", default="bundled")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=1500)
    parser.add_argument("--limit", type=int, default=60)
    flags = parser.parse_args()
    flags.work.mkdir(parents=True, exist_ok=True)
    packs = {removed: heal(removed, flags) for removed in KEEPS}
    named = [argument for pack in packs.values() for argument in ("--pack", str(pack))]
    asked = ("--data", flags.requests, "--limit", str(flags.limit))
    told = outrider("eval", *named, *asked, "--temperature", "0", "--temperature", "1", "--json")
    judged = json.loads(told.splitlines()[-1])
    found = [
        row(removed, pack, judged["packs"][number]["acceptance"], asked)
        for number, (removed, pack) in enumerate(packs.items())
    ]
    rows = sorted(found, key=lambda each: float(each["removed"]))
    made = {name: getattr(flags, name) for name in ("steps", "prompts", "limit")}
    told = " ".join(f"--{name} {value}" for name, value in made.items())
    command = f"python tests/bench/pruning_curve.py --data DATA {told} --work WORK --out CURVE.json --plot CURVE.png"
    whole = {
        "command": command,
        "machine": judged["machine"],
        "steps": flags.steps,
        "prompts": flags.prompts,
        "rows": rows,
    }
    flags.out.write_text(json.dumps(whole, indent=1) + "\n")
    draw(flags.plot, rows)


if __name__ == "__main__":
    main()
