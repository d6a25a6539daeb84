"""`outrider edge`: answer on the device, riding ahead of a cloud."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_edge.device import Device
from outrider_edge.link.grpc_link import ClientTls
from outrider_edge.render import TokenPrinter
from outrider_edge.report import AnswerReport
from outrider_edge.session.events import GenerateRequest, Pace
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.chat import render_chat
from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError
from outrider_shared.logs import configure_logs
from outrider_shared.sampling import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable


@click.group(cls=TypedErrors)
def edge() -> None:
    """The edge side: a draft model that rides ahead of the cloud."""
    configure_logs()


def answer_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of one answer."""
    for option in (
        click.option("--seed", type=int, default=0, show_default=True, help="Key of the noise."),
        click.option("--min-p", type=float, default=0.0, help="Keep tokens this fraction as likely as the likeliest; 0: off."),
        click.option("--top-p", type=float, default=1.0, help="Keep the likeliest tokens up to this mass; 1: off."),
        click.option("--top-k", type=int, default=0, help="Keep the k likeliest tokens; 0: off."),
        click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy."),
        click.option("--max-tokens", type=click.IntRange(1), default=128, show_default=True, help="Tokens to generate at most."),
    ):  # fmt: skip
        command = option(command)
    return command


@edge.command()
@answer_options
@click.option("--cloud", required=True, help="HOST:PORT of the verifier.")
@click.option("--draft", default="bundled", show_default=True, help="Pack folder, 'bundled', or 'none' for plain decoding.")
@click.option("--prompt", required=True, help="Text to continue, or with --chat the user's words.")
@click.option("--chat", is_flag=True, help="Wrap the prompt with the pack's chat template.")
@click.option("--pace", type=click.Choice([p.value for p in Pace]), default=Pace.HOLD.value, show_default=True, help="What the cloud does while no draft is at hand.")
@click.option("--depth", type=click.IntRange(1), default=DraftPolicy().depth, show_default=True, help="Longest chain of a burst.")
@click.option("--width", type=click.IntRange(1), default=DraftPolicy().width, show_default=True, help="Candidates per position.")
@click.option("--ignore-eos", is_flag=True, help="Go on past the model's end tokens.")
@click.option("--tls-ca", type=click.Path(path_type=Path), help="PEM of who signs the cloud's certificate.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM certificate of this device (mTLS).")
@click.option("--tls-key", type=click.Path(path_type=Path), help="PEM key of this device (mTLS).")
@click.option("--tls", is_flag=True, help="Use TLS with the system's roots.")
@click.option("--deadline-s", type=click.FloatRange(0, min_open=True), help="Give up after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def generate(**flags: Any) -> None:
    """Generate one answer: the text is the cloud model's own, token for token."""
    params = SamplingParams(*(flags[name] for name in ("temperature", "top_k", "top_p", "min_p", "seed")))
    device = Device.open(
        flags["cloud"],
        flags["draft"],
        tls=_tls(flags),
        policy=DraftPolicy(depth=flags["depth"], width=flags["width"]),
        deadline_s=flags["deadline_s"],
    )
    text = flags["prompt"]
    if flags["chat"]:
        text = render_chat(device.chat_template, [{"role": "user", "content": text}])
    request = GenerateRequest(
        prompt=tuple(device.tokenizer.encode(text).ids),
        max_tokens=flags["max_tokens"],
        params=params,
        ignore_eos=flags["ignore_eos"],
        pace=Pace(flags["pace"]),
    )
    report = asyncio.run(_answer(device, request, quiet=flags["as_json"]))
    click.echo(json.dumps(report.as_dict()) if flags["as_json"] else report.summary())


async def _answer(device: Device, request: GenerateRequest, *, quiet: bool) -> AnswerReport:
    printer = None if quiet else TokenPrinter(device.tokenizer)
    async with device:
        return await device.answer(request, on_event=printer)


def _tls(flags: dict[str, Any]) -> ClientTls | None:
    if not (flags["tls"] or flags["tls_ca"]):
        if flags["tls_cert"] or flags["tls_key"]:
            raise ConfigError("--tls-cert and --tls-key need --tls or --tls-ca")
        return None
    return ClientTls(flags["tls_ca"], flags["tls_cert"], flags["tls_key"])


if __name__ == "__main__":
    edge()
