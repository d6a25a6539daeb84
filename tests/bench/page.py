"""How soon the operator's page shows a view in a real Chromium: many devices in the registry, a roll-out to all.

    PYTHONPATH=cloud:edge:shared:tests python tests/bench/page.py --devices 100000 --out tests/bench/results/FILE.json

From the click to the first frame that has the view's figures; the stream of changes goes on meanwhile. Needs Chromium,
Playwright and Mosquitto, so it is no `outrider bench` command.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from outrider_cloud.fleet.bench.place import place, quantiles
from outrider_cloud.fleet.bench.registry import ROLLOUT, RegistryPlan, begun, fill, start_rollout
from outrider_cloud.fleet.bench.service import new_home, running
from outrider_cloud.fleet.home import ADMIN_TOKEN
from outrider_cloud.fleet.serve import open_registry
from support.browser import chromium

if TYPE_CHECKING:
    from playwright.sync_api import Page

_SHOWN = """async ([place, look]) => {
  document.getElementById("view").replaceChildren();
  const began = performance.now();
  location.hash = "#/" + place;
  while (!document.querySelector(look)) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - began;
}"""


def views(last: str) -> dict[str, tuple[str, str]]:
    """Name -> place of the page, and what stands there once it is drawn."""
    return {
        "glance": ("", ".figures dd"), "devices": ("devices", "tbody tr:nth-child(50)"),
        "one device": (f"devices/{last}", ".chart .line"), "roll-outs": ("rollouts", "tbody tr"),
        "one roll-out": (f"rollouts/{ROLLOUT}", ".stages li"), "audit log": ("audit", "tbody tr"),
    }  # fmt: skip


def signed_in(page: Page, url: str, token: str) -> float:
    """Milliseconds from the address to the figures, with the token at hand."""
    page.goto(url)
    page.evaluate("token => sessionStorage.setItem('outrider-fleet-token', token)", token)
    page.evaluate("location.hash = '#/'")
    page.reload(wait_until="commit")
    page.locator(".figures dd").first.wait_for()
    return float(page.evaluate("performance.now()"))


@click.command(help=__doc__)
@click.option("--devices", type=click.IntRange(100), default=100_000, show_default=True)
@click.option("--repeats", type=click.IntRange(2), default=20, show_default=True)
@click.option("--out", type=click.Path(path_type=Path))
def main(devices: int, repeats: int, out: Path | None) -> None:
    """Fill, serve, look."""
    plan = RegistryPlan(devices=devices, windows=2)
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as temporary:
        home = new_home(Path(temporary) / "fleet")
        database = open_registry(home)
        fill(database, plan)
        start_rollout(database)
        database.close()
        with running(home) as service, chromium() as browser:
            begun(service)
            page = browser.new_page(viewport={"width": 1280, "height": 860})
            token = (home.folder / ADMIN_TOKEN).read_text("utf-8").strip()
            took = {"opened anew, to the glance": [signed_in(page, service.url, token) / 1000 for _ in range(repeats)]}
            page.locator("#live.up").wait_for()
            for name, (where, look) in views(f"dev-{devices - 1:06d}").items():
                took[name] = []
                for _ in range(repeats):
                    page.evaluate("location.hash = '#/nowhere'")
                    page.wait_for_timeout(100)
                    took[name].append(page.evaluate(_SHOWN, [where, look]) / 1000)
    rows = [{"view": name, **quantiles(seconds)} for name, seconds in took.items()]
    told = {**place(), "bench": "fleet page", "devices": devices, "repeats": repeats,
            "slowest_view_p95_ms": max(row["p95_ms"] for row in rows), "views": rows}  # fmt: skip
    click.echo(json.dumps(told, indent=1))
    if out is not None:
        out.write_text(json.dumps(told, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
