"""`outrider edge serve`: the device's endpoint."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_edge.api.settings import find_file, load

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_edge.api.config import EdgeConfig

# Flag -> where it belongs in the configuration.
_PLACES = {
    "clouds": ("cloud", "addresses"), "tls": ("cloud", "tls"), "tls_ca": ("cloud", "ca"), "tls_cert": ("cloud", "cert"),
    "tls_key": ("cloud", "key"), "offline": ("cloud", "offline"), "padding": ("cloud", "padding"), "draft": ("draft", "pack"),
    "threads": ("draft", "threads"), "listen": ("serve", "listen"), "api_key_file": ("serve", "api_key_file"),
    "hosts": ("serve", "hosts"), "origins": ("serve", "origins"), "drain_s": ("serve", "drain_s"),
    "concurrent": ("limits", "concurrent"), "memory_mb": ("limits", "memory_mb"), "pace": ("defaults", "pace"),
    "local_only": ("defaults", "local_only"), "smooth": ("defaults", "smooth"),
    "log_prompts": ("privacy", "log_prompts"), "report_refused": ("privacy", "report_refused"),
}  # fmt: skip


def padding_option(default: str | None = None) -> Callable[..., Any]:
    """How messages are hidden from who listens; without a default the settings decide."""
    about = "Blocks of one size at fixed times, against who listens on the network: off, on, or BYTES/INTERVAL such as 256/20ms."
    return click.option("--padding", default=default, show_default=default is not None, help=about)


def way_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of the draft and of the way to the cloud, shared by the commands that read the settings."""
    for option in (
        click.option("--draft", help="Pack folder, 'bundled', or 'none'."),
        padding_option(),
        click.option("--tls-key", help="PEM key of this device (mTLS)."),
        click.option("--tls-cert", help="PEM certificate of this device (mTLS)."),
        click.option("--tls-ca", help="PEM of who signs the cloud's certificate."),
        click.option("--tls", is_flag=True, default=None, help="Use TLS with the system's roots."),
        click.option("--cloud", "clouds", multiple=True, help="HOST:PORT of a verifier; repeat, the most preferred first."),
    ):  # fmt: skip
        command = option(command)
    return command


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags over the configuration file and the environment."""
    for option in (
        click.option("--report-refused", is_flag=True, default=None, help="Let the cloud keep where it refuses drafts, with the text before, to train better ones."),
        click.option("--log-prompts", is_flag=True, default=None, help="Write prompts and answers to the log."),
        click.option("--local-only", is_flag=True, default=None, help="Never leave the device: the draft model answers alone."),
        click.option("--smooth", is_flag=True, default=None, help="Spread bursts of tokens evenly."),
        click.option("--pace", type=click.Choice(["auto", "ahead", "hold"]), help="What the cloud does while no draft is at hand."),
        click.option("--memory-mb", type=click.IntRange(0), help="Most address space; 0 is no bound."),
        click.option("--concurrent", type=click.IntRange(1), help="Answers at once."),
        click.option("--drain-s", type=click.FloatRange(0), help="How long a stop waits for answers."),
        click.option("--origin", "origins", multiple=True, help="Web origin that may call (CORS); repeat."),
        click.option("--host", "hosts", multiple=True, help="Further name in the Host header that is answered; repeat."),
        click.option("--api-key-file", help="File with the key that clients must send."),
        click.option("--listen", help="HOST:PORT of the endpoint; 127.0.0.1:8484 by default."),
        click.option("--threads", type=click.IntRange(1), help="CPU threads of a draft pass."),
        click.option("--offline", type=click.Choice(["error", "wait", "draft"]), help="Without the cloud: fail, wait, or go on with the draft alone."),
        click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file; see docs/edge.md."),
    ):  # fmt: skip
        command = option(command)
    return way_options(command)


def read_config(file: Path | None, flags: dict[str, Any]) -> EdgeConfig:
    """File, environment and flags put together."""
    given = {_PLACES[name]: value for name, value in flags.items() if value not in {None, ()}}
    return load(find_file(file), given)


@click.command()
@config_options
@click.option(
    "--ready-file", type=click.Path(path_type=Path), help="Written with the URL when requests can be answered."
)
@click.option("--fleet", type=click.Path(path_type=Path), help="Take part in a fleet: agent.toml or its folder.")
def serve(file: Path | None, *, ready_file: Path | None, fleet: Path | None, **flags: Any) -> None:
    """Serve an OpenAI-compatible endpoint on this device, and a playground at /."""
    config = read_config(file, flags)
    from outrider_edge.api.daemon import Daemon  # noqa: PLC0415 - `--help` does without the stack

    def ready(url: str) -> None:
        click.echo(f"serving {url}/v1 (playground: {url}/)")
        if ready_file is not None:
            ready_file.write_text(url)

    async def run() -> None:
        await Daemon(config, lambda: read_config(file, flags), fleet).run(ready)

    asyncio.run(run())


@click.command()
@config_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: Path | None, *, as_json: bool, **flags: Any) -> None:
    """Explain what `serve` would do with these settings, and test the way to the cloud."""
    config = read_config(file, flags)
    from outrider_edge.api.check import check as look  # noqa: PLC0415 - as above

    findings = asyncio.run(look(config, find_file(file)))
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{finding.mark} {finding.about:<12} {finding.text}")
    if any(finding.failed for finding in findings):
        raise SystemExit(1)
