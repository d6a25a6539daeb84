"""`outrider edge`: answer on the device, riding ahead of a cloud."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from outrider_edge.api.cli import check, padding_option, serve
from outrider_edge.chat.cli import chat
from outrider_edge.compare import BUNDLED, Pair, read_requests, totals
from outrider_edge.compare import compare as compare_answers
from outrider_edge.device import Device
from outrider_edge.draft.profile import profile, write_profile
from outrider_edge.link.grpc_link import ClientTls
from outrider_edge.render import TokenPrinter, comparison_table, legend, profile_table
from outrider_edge.session.events import GenerateRequest, Pace
from outrider_edge.session.offline import OfflineMode, OfflinePolicy
from outrider_edge.session.policy import DraftPolicy
from outrider_shared.chat import render_chat
from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError
from outrider_shared.flags import Seconds, answer_options, prompt_options, prompt_text, sampling_params
from outrider_shared.grammar import json_schema
from outrider_shared.logs import configure_logs
from outrider_shared.packs import bundled_pack, read_pack
from outrider_shared.padding import Padding

if TYPE_CHECKING:
    from collections.abc import Callable

    from outrider_edge.report import AnswerReport
    from outrider_shared.grammar import Grammar


@click.group(cls=TypedErrors)
def edge() -> None:
    """The edge side: a draft model that rides ahead of the cloud."""
    configure_logs()


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Flags of the way to the cloud and of drafting."""
    for option in (
        click.option("--offline-after", type=Seconds(), default="15s", show_default=True, help="Silence of the cloud, such as 2s or 500ms, before --offline applies."),
        click.option("--offline", type=click.Choice([m.value for m in OfflineMode]), default=OfflineMode.ERROR.value, show_default=True, help="Without the cloud: fail, wait for it, or go on with the draft alone, unverified until it is back."),
        click.option("--deadline-s", type=click.FloatRange(0, min_open=True), help="Most time for one answer."),
        padding_option("off"),
        click.option("--tls-key", type=click.Path(path_type=Path), help="PEM key of this device (mTLS)."),
        click.option("--tls-cert", type=click.Path(path_type=Path), help="PEM certificate of this device (mTLS)."),
        click.option("--tls-ca", type=click.Path(path_type=Path), help="PEM of who signs the cloud's certificate."),
        click.option("--tls", is_flag=True, help="Use TLS with the system's roots."),
        click.option("--width", type=click.IntRange(1), default=DraftPolicy().width, show_default=True, help="Candidates per position."),
        click.option("--depth", type=click.IntRange(1), default=DraftPolicy().depth, show_default=True, help="Longest chain of a burst."),
        click.option("--pace", type=click.Choice([p.value for p in Pace]), default=Pace.AUTO.value, show_default=True, help="What the cloud does while no draft is at hand: decode by itself, wait, or whichever pays."),
        click.option("--draft", default="bundled", show_default=True, help="Pack folder, 'bundled', or 'none' for plain decoding."),
        click.option("--cloud", "clouds", required=True, multiple=True, help="HOST:PORT of the verifier; again for one to turn to when the ones before are away."),
    ):  # fmt: skip
        command = option(command)
    return command


@edge.command("agent")
@click.argument("fleet", type=click.Path(path_type=Path))
@click.option(
    "--base", type=click.Path(path_type=Path), help="Pack to use while none was installed; by default the bundled one."
)
def agent_command(fleet: Path, *, base: Path | None) -> None:
    """Take part in a fleet without answering requests; FLEET is agent.toml or its folder."""
    from outrider_edge.agent.standalone import run_standalone  # noqa: PLC0415 - [edge] alone has no MQTT

    click.echo(f"running the agent of {fleet} until Ctrl-C; OUTRIDER_LOG=info tells what it does", err=True)
    asyncio.run(run_standalone(fleet, base))


@edge.command()
@click.argument("pack", type=click.Path(path_type=Path))
@click.option("--text", "texts", multiple=True, help="A prompt; may be given again.")
@click.option("--tokens", type=click.IntRange(1, 512), default=16, show_default=True, help="After each prompt.")
def golden(pack: Path, *, texts: tuple[str, ...], tokens: int) -> None:
    """Print golden prompts of PACK as JSON, for `outrider fleet model publish --golden`."""
    from outrider_edge.agent.update.selftest import TEXTS, make_golden  # noqa: PLC0415 - likewise

    cases = make_golden(pack, texts or TEXTS, tokens)
    click.echo(json.dumps([{"prompt": case.prompt, "expected": case.expected} for case in cases]))


@edge.command()
@connection_options
@answer_options
@prompt_options
@click.option("--min-tokens", type=click.IntRange(0), default=0, help="Tokens before the answer may end.")
@click.option(
    "--logprobs",
    type=click.IntRange(0, 20),
    help="With --json: each token's log-probability, and of this many likeliest.",
)
@click.option(
    "--json-schema", type=click.Path(path_type=Path), help="The answer must fit the JSON schema in this file."
)
@click.option(
    "--report-refused",
    is_flag=True,
    help="Let the cloud keep where it refuses drafts, with the text before, to train better ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def generate(prompt: str, system: str, *, chat: bool, as_json: bool, **flags: Any) -> None:
    """Generate one answer: the text is the cloud model's own, token for token."""
    device = _device(flags)
    text, chat = prompt_text(device.chat_template, prompt, system, chat=chat)
    request = _request(device, text, flags, chat=chat)
    report = asyncio.run(_answer(device, request, quiet=as_json))
    click.echo(json.dumps(report.as_dict()) if as_json else report.summary())


@edge.command()
@connection_options
@answer_options
@click.option("--requests", default=BUNDLED, show_default=True, help="JSONL with `messages` per line, or 'bundled'.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Requests to leave out at the start.")
@click.option("--limit", type=click.IntRange(1), help="Requests to answer at most.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the JSON object to this file.")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(
    requests: str, *, skip: int, limit: int | None, report: Path | None, quiet: bool, as_json: bool, **flags: Any
) -> None:
    """Answer requests drafted and plain, over the same connection, and set both side by side."""
    device = _device(flags)
    conversations = read_requests(requests)[skip:][:limit]
    if not conversations:
        raise ConfigError(f"no request is left of {requests} after skipping {skip}")
    asked = [
        (messages[-1]["content"], _request(device, render_chat(device.chat_template, messages), flags, chat=True))
        for messages in conversations
    ]
    pairs = asyncio.run(_compare(device, asked, quiet=as_json or quiet))
    result = {**totals(pairs), "calibration": device.calibration.evidence()}
    if report is not None:
        report.write_text(json.dumps(result))
    if as_json:
        click.echo(json.dumps(result))
    elif not quiet:
        Console().print(comparison_table(result))


@edge.command("profile")
@click.argument("packs", nargs=-1, required=True, metavar="PACK...")
@click.option(
    "--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="The acceptance to reckon with."
)
@click.option("--step-ms", type=click.FloatRange(0), default=25.0, show_default=True, help="Time of a cloud step.")
@click.option("--rtt-ms", type=click.FloatRange(0), default=25.0, show_default=True, help="Round trip to the cloud.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="CPU threads of a draft pass.")
@click.option(
    "--repeats", type=click.IntRange(1), default=200, show_default=True, help="Passes of each number of rows."
)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Keep the choice here; --draft takes the file in place of a pack."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def choose_pack(packs: tuple[str, ...], *, out: Path | None, as_json: bool, **flags: Any) -> None:
    """Choose among packs of one draft by pass times measured on this device and their measured acceptance."""
    folders = [bundled_pack() if path == BUNDLED else Path(path) for path in packs]
    found = profile(
        [read_pack(folder) for folder in folders],
        temperature=flags["temperature"],
        cloud_s=(flags["step_ms"] + flags["rtt_ms"]) / 1e3,
        threads=flags["threads"],
        repeats=flags["repeats"],
    )
    if out is not None:
        write_profile(out, found, flags)
    if as_json:
        candidates = [dataclasses.asdict(candidate) for candidate in found]
        click.echo(json.dumps({"pack": found[0].path, "setting": flags, "candidates": candidates}))
    else:
        Console().print(profile_table(found))


edge.add_command(serve)
edge.add_command(chat)
edge.add_command(check)


def _device(flags: dict[str, Any]) -> Device:
    return Device.open(
        flags["clouds"],
        flags["draft"],
        tls=_tls(flags),
        policy=DraftPolicy(depth=flags["depth"], width=flags["width"]),
        offline=OfflinePolicy(OfflineMode(flags["offline"]), flags["offline_after"]),
        deadline_s=flags["deadline_s"],
        padding=Padding.parse(flags["padding"]),
    )


def _request(device: Device, text: str, flags: dict[str, Any], *, chat: bool) -> GenerateRequest:
    return GenerateRequest(
        # A chat template writes the special tokens itself.
        prompt=tuple(device.tokenizer.encode(text, add_special_tokens=not chat).ids),
        max_tokens=flags["max_tokens"],
        params=sampling_params(flags),
        ignore_eos=flags.get("ignore_eos", False),
        min_tokens=flags.get("min_tokens", 0),
        logprobs=flags.get("logprobs") is not None,
        top_logprobs=flags.get("logprobs") or 0,
        grammar=_grammar(flags.get("json_schema")),
        pace=Pace(flags["pace"]),
        report_refused=flags.get("report_refused", False),
    )


def _grammar(path: Path | None) -> Grammar | None:
    if path is None:
        return None
    try:
        return json_schema(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the schema {path} cannot be read: {error}") from error


async def _compare(device: Device, asked: list[tuple[str, GenerateRequest]], *, quiet: bool) -> list[Pair]:
    console = Console(highlight=False)
    printer = TokenPrinter(device.tokenizer, console)

    def start(title: str) -> None:
        printer.begin()
        console.print(f"\n\n[bold]> {escape(title)}[/bold]", soft_wrap=True)

    if not quiet:
        console.print(legend())
    async with device:
        pairs = await compare_answers(device, asked, None if quiet else start, None if quiet else printer)
    if not quiet:
        console.print()
    return pairs


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
