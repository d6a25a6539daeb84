"""The command `outrider edge chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_edge.api.cli import read_config, way_options
from outrider_shared.errors import ConfigError
from outrider_shared.flags import system_option

if TYPE_CHECKING:
    from outrider_edge.api.config import EdgeConfig
    from outrider_edge.chat.answerer import Answerer
    from outrider_edge.chat.lines import Lines
    from outrider_edge.chat.screen import Screen

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed", "pace", "offline", "local_only", "smooth")
_DIRECT = ("clouds", "draft", "tls", "tls_ca", "tls_cert", "tls_key", "padding")
_PLACES = ("api_key_file", "local_only", "offline", "pace")


@click.command()
@click.option(
    "--url", help="A daemon's, such as http://127.0.0.1:8484; by default where the settings say that it listens."
)
@way_options
@system_option
@click.option("--load", "kept", type=click.Path(path_type=Path), help="Go on with a conversation that /save kept.")
@click.option("--temperature", type=float, help="0 is greedy; by default as the settings say.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens up to this mass.")
@click.option("--top-k", type=int, help="Keep the k likeliest tokens.")
@click.option("--min-p", type=float, help="Keep tokens this fraction as likely as the likeliest.")
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens of an answer at most.")
@click.option("--seed", type=int, help="Key of the noise; by default another for each answer.")
@click.option("--local-only", is_flag=True, default=None, help="Never leave the device: the draft model answers alone.")
@click.option("--smooth", is_flag=True, default=None, help="Spread bursts of tokens evenly.")
@click.option(
    "--pace", type=click.Choice(["auto", "ahead", "hold"]), help="What the cloud does while no draft is at hand."
)
@click.option(
    "--offline",
    type=click.Choice(["error", "wait", "draft"]),
    help="Without the cloud: fail, wait, or go on with the draft alone.",
)
@click.option(
    "--history/--no-history", default=True, show_default=True, help="Keep what was typed, in a file of yours alone."
)
@click.option("--api-key-file", help="File with the key that the daemon asks for.")
@click.option("--config", "file", type=click.Path(path_type=Path), help="TOML file; see docs/edge.md.")
def chat(file: Path | None, url: str | None, *, system: str, kept: Path | None, history: bool, **flags: Any) -> None:
    """Talk to the model: through the daemon of this device, or with --cloud without one. Lines of a pipe are answered, too."""
    _for_one_way(url, flags)
    config = read_config(file, {name: flags[name] for name in (*_DIRECT, *_PLACES)})
    from outrider_edge.chat.screen import Screen  # noqa: PLC0415 - `--help` does without
    from outrider_edge.chat.talk import Talk  # noqa: PLC0415 - as above
    from outrider_edge.chat.transcript import Transcript  # noqa: PLC0415 - as above

    transcript = Transcript(system)
    if kept is not None:
        transcript.load(kept)
    screen, lines = Screen(), _lines(history=history)
    answerer = _answerer(config, url, direct=bool(flags["clouds"]))
    try:
        _greet(answerer, screen)
        talk = Talk(answerer, lines, screen, transcript, {name: flags[name] for name in _SAMPLING})
        talk.run()
    finally:
        answerer.close()
    if talk.failed and not sys.stdin.isatty():
        raise SystemExit(1)


def _for_one_way(url: str | None, flags: dict[str, Any]) -> None:
    """A daemon goes its own way to the cloud: a flag that could not be followed is refused, not ignored."""
    if flags["clouds"]:
        if url is not None:
            raise ConfigError("--url is a daemon's, --cloud does without a daemon: give one of them")
        return
    idle = [f"--{name.replace('_', '-')}" for name in _DIRECT if flags[name]]
    if idle:
        raise ConfigError(
            f"{', '.join(idle)} without --cloud: the daemon's own settings say how it reaches the cloud",
            hint="give --cloud HOST:PORT to do without the daemon, or set it where the daemon is started",
        )


def _answerer(config: EdgeConfig, url: str | None, *, direct: bool) -> Answerer:
    if direct:
        from outrider_edge.chat.direct import Direct  # noqa: PLC0415 - loads a model

        return Direct(config)
    from outrider_edge.api.daemon import read_key  # noqa: PLC0415 - `--help` does without
    from outrider_edge.chat.endpoint import Endpoint  # noqa: PLC0415 - as above

    return Endpoint(url or f"http://{config.serve.listen}", read_key(config))


def _lines(*, history: bool) -> Lines:
    from outrider_edge.chat.lines import PipedLines, TypedLines, history_file  # noqa: PLC0415 - as above

    if not sys.stdin.isatty():
        return PipedLines()
    return TypedLines(history_file() if history else None)


def _greet(answerer: Answerer, screen: Screen) -> None:
    status = answerer.status()
    if status.get("cloud_reachable"):
        screen.hello(f"{status['draft']} rides ahead of {status['model']} at {status['cloud']}; /help")
        return
    screen.hello(f"{status['draft']}; the cloud at {status['cloud']} is away; /help")
