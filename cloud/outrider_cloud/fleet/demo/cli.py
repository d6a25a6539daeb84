"""The command `outrider fleet demo`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from outrider_cloud.fleet.demo.processes import Processes
from outrider_cloud.fleet.demo.setting import DEVICE, Setting, Stage
from outrider_cloud.fleet.demo.story import Check, Story
from outrider_shared.packs import bundled_pack
from outrider_shared.processes import ending_on_sigterm

_DEFAULT = Setting(Path())


@click.command("demo")
@click.option(
    "--devices", type=click.IntRange(8, 2000), default=_DEFAULT.devices, show_default=True, help="Simulated devices."
)
@click.option(
    "--telemetry-s", type=click.FloatRange(0.2, 10), default=_DEFAULT.telemetry_s, show_default=True, help="Window."
)
@click.option("--page-port", type=int, default=_DEFAULT.page_port, show_default=True, help="Of the page.")
@click.option("--hold", is_flag=True, help="Leave everything running at the end, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(*, devices: int, telemetry_s: float, page_port: int, hold: bool, as_json: bool) -> None:
    """Run a whole fleet on this machine: a good draft goes out, a bad one is stopped and taken back."""
    console, began = Console(highlight=False, stderr=as_json), time.monotonic()
    setting = Setting(bundled_pack(), devices, telemetry_s, page_port)

    def say(text: str) -> None:
        style = "bold cyan" if text.startswith("$") else ""
        console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim]  {escape(text)}", style=style, soft_wrap=True)

    def checked(check: Check) -> None:
        mark, found = "[green]ok  [/green]" if check.passed else "[red]FAIL[/red]", escape(check.found)
        console.print(f"         {mark} [bold]{escape(check.what)}[/bold]  [dim]{found}[/dim]", soft_wrap=True)

    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="outrider-fleet-") as name:
        folder = Path(name)
        with Processes(folder / "logs") as processes:
            story = _play(Stage(folder, setting, processes), setting, say, checked)
            if hold:
                say("everything goes on running; Ctrl-C ends it")
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()
            statuses = processes.stop()
        story.expect("every process ended as it should", not any(statuses.values()), json.dumps(statuses))
    _end(story, console, round(time.monotonic() - began, 1), as_json=as_json)


def _play(stage: Stage, setting: Setting, say: Any, checked: Any) -> Story:
    say("$ outrider fleet init ./fleet; outrider fleet broker; outrider fleet serve")
    stage.serve()
    say(f"watch it: {stage.page}  token: {stage.token}")
    say(f"$ outrider cloud serve --exact; outrider edge serve --fleet {DEVICE}")
    stage.answer()
    say(f"$ outrider fleet simulate --devices {setting.devices}")
    stage.simulate()
    story = Story(stage, setting.devices, setting.telemetry_s, say, checked)
    story.play()
    return story


def _end(story: Story, console: Console, seconds: float, *, as_json: bool) -> None:
    failed = [check.what for check in story.checks if not check.passed]
    told = {"passed": not failed, "seconds": seconds, **story.measured}
    if as_json:
        click.echo(json.dumps({**told, "checks": [dataclasses.asdict(check) for check in story.checks]}))
    else:
        for name, value in story.measured.items():
            shown = f"{value:.3f}" if isinstance(value, float) else value
            console.print(f"         {name.replace('_', ' ')}: {shown}")
        console.print(
            f"[red]{len(failed)} checks failed[/red]" if failed else f"[green]all as it should be[/green], {seconds} s"
        )
    if failed:
        raise SystemExit(1)
