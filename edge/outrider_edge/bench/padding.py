"""`outrider bench padding`: what padding costs, and what who listens on the network learns with and without it.

The listener knows each request's records (sizes, in order, both ways) from a first round of answers, and hears a second
round: to each answer it names the request whose records are most alike. By chance it is right once in as many answers
as there are requests. The last figure leaves out the uplink, where the prompt's own size is.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from outrider_edge.bench.measure import Stopwatch
from outrider_edge.bench.processes import Identity, Served, cloud_flags, make_identity, measured, serving
from outrider_edge.bench.setting import bench_command, bench_requests, machine, wide_console
from outrider_edge.compare import BUNDLED
from outrider_edge.device import Device
from outrider_shared.cli import TypedErrors
from outrider_shared.emulator.control import LinkProcess
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.padding import Padding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from outrider_edge.session.events import GenerateRequest

_NOTES = [
    "bytes are TCP payload with TLS, prompt and the rest of the last round included",
    "tokens/s counts from the call to the last token, ttft_ms to the first (median over answers)",
    "identified: share of answers of the second round whose request the listener names; chance is 1 / requests",
]


@dataclass(frozen=True, slots=True)
class PaddedAnswer:
    """One answer, and what was heard of it.

    Attributes:
        token_ids: Of the text.
        ttft_s, wall_s: From the call to the first and the last token.
        up, down: Sizes of records, in order.
    """

    token_ids: list[int]
    ttft_s: float
    wall_s: float
    up: tuple[int, ...]
    down: tuple[int, ...]


@click.command()
@click.option(
    "--settings",
    default="off,128/20ms,128/40ms,128/10ms",
    show_default=True,
    help="Values of --padding; the first is what the others are compared with.",
)
@click.option("--rtt", type=click.FloatRange(0), default=50.0, show_default=True, help="Round-trip time, ms.")
@click.option(
    "--step-ms", type=click.FloatRange(0), default=25.0, show_default=True, help="Least time of a step; 0: none."
)
@click.option("--requests", default=BUNDLED, show_default=True, help="JSONL with `messages` per line, or 'bundled'.")
@click.option("--count", type=click.IntRange(2), default=12, show_default=True, help="Requests; each is asked twice.")
@click.option("--skip", type=click.IntRange(0), default=0, help="Requests to leave out at the start.")
@click.option(
    "--max-tokens", type=click.IntRange(2), default=64, show_default=True, help="Tokens of an answer at most."
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise and of the link.")
@click.option("--model", default=BUNDLED, show_default=True, help="Hugging Face folder of the cloud, or 'bundled'.")
@click.option("--draft", default=BUNDLED, show_default=True, help="Pack folder, or 'bundled'.")
@click.option("--threads", type=click.IntRange(0), default=1, show_default=True, help="CPU threads of a step.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the JSON object to this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def padding(out: Path | None, *, as_json: bool, **flags: Any) -> None:
    """What padding costs in bytes and time, and what a listener on the network learns with and without it."""
    names = flags["settings"].split(",")
    settings = {name: Padding.parse(name) for name in names}
    with tempfile.TemporaryDirectory(prefix="outrider-bench-") as folder:
        figures = measured(_measure(settings, bench_requests(flags), flags, make_identity(Path(folder))))
    result = {
        "command": bench_command("padding"),
        "machine": machine(),
        "notes": _NOTES,
        "settings": flags,
        "figures": figures,
    }
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
    if as_json:
        click.echo(json.dumps(result))
    else:
        wide_console().print(_table(figures))


async def _measure(
    settings: dict[str, Padding | None], requests: Sequence[GenerateRequest], flags: dict[str, Any], identity: Identity
) -> dict[str, dict[str, Any]]:
    command = [*cloud_flags(flags["model"], flags["threads"], flags["step_ms"]), *identity.server_flags]
    profile = LinkProfile(flags["rtt"] / 1e3)
    async with serving("outrider_cloud.cli", *command) as cloud:
        rounds = {
            name: await _answers(cloud, profile, setting, requests, flags, identity)
            for name, setting in settings.items()
        }
    first = next(iter(rounds.values()))
    return {name: figures_of(found, first) for name, found in rounds.items()}


async def _answers(
    cloud: Served, profile: LinkProfile, setting: Padding | None, requests: Sequence[GenerateRequest],
    flags: dict[str, Any], identity: Identity,
) -> list[list[PaddedAnswer]]:  # fmt: skip
    """Two rounds of answers."""
    async with LinkProcess(cloud.address, profile, flags["seed"]) as link:
        await link.listen()
        device = Device.open(link.address, flags["draft"], tls=identity.client, padding=setting)
        async with device:
            for request in requests:  # fills the cloud's prefix cache, and brings the connection into its steady state
                await device.answer(replace(request, max_tokens=2))
            return [[await _answer(device, link, request) for request in requests] for _ in range(2)]


async def _answer(device: Device, link: LinkProcess, request: GenerateRequest) -> PaddedAnswer:
    await device.settle()
    await link.heard()
    watch = Stopwatch()
    report = await device.answer(request, watch)
    await device.settle()
    heard = await link.heard()
    ways = [tuple(record.bytes for record in heard if record.up is up) for up in (True, False)]
    return PaddedAnswer(report.token_ids, watch.first - watch.started, watch.last - watch.started, *ways)


def figures_of(rounds: list[list[PaddedAnswer]], first: list[list[PaddedAnswer]]) -> dict[str, Any]:
    """One setting's figures.

    Args:
        rounds: Its two rounds of answers.
        first: Those of the setting that all are compared with.
    """
    answers, others = ([answer for found in two for answer in found] for two in (rounds, first))
    tokens = sum(len(answer.token_ids) for answer in answers)
    rate = _rate(answers)
    return {
        "tokens_per_s": rate,
        "speed": rate / _rate(others),
        "ttft_ms": 1e3 * statistics.median(answer.ttft_s for answer in answers),
        "up_bytes_per_token": sum(sum(answer.up) for answer in answers) / tokens,
        "down_bytes_per_token": sum(sum(answer.down) for answer in answers) / tokens,
        "sizes_up": len({size for answer in answers for size in answer.up}),
        "sizes_down": len({size for answer in answers for size in answer.down}),
        "identified": identified([(a.up, a.down) for a in rounds[0]], [(a.up, a.down) for a in rounds[1]]),
        "identified_by_downlink": identified([(a.down,) for a in rounds[0]], [(a.down,) for a in rounds[1]]),
        "chance": 1 / len(rounds[0]),
        "identical": [answer.token_ids for answer in answers] == [answer.token_ids for answer in others],
    }


def _rate(answers: Sequence[PaddedAnswer]) -> float:
    return sum(len(answer.token_ids) for answer in answers) / sum(answer.wall_s for answer in answers)


def identified(known: Sequence[tuple[tuple[int, ...], ...]], heard: Sequence[tuple[tuple[int, ...], ...]]) -> float:
    """Share of what was heard whose nearest neighbour in what is known has the same place; ties count as one guess.

    Args:
        known: Per request, sequences of sizes.
        heard: The same of another round.
    """

    def distance(one: tuple[tuple[int, ...], ...], other: tuple[tuple[int, ...], ...]) -> int:
        return sum(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip_longest(x, y, fillvalue=0))

    right = 0.0
    for place, sizes in enumerate(heard):
        far = [distance(sizes, other) for other in known]
        right += (far[place] == min(far)) / far.count(min(far))
    return right / len(heard)


def _table(figures: dict[str, dict[str, Any]]) -> Table:
    table = Table(
        "padding", "tokens/s", "speed", "ttft ms", "B up", "B down", "sizes", "identified", "by downlink", "same text"
    )
    for name, f in figures.items():
        table.add_row(
            name, f"{f['tokens_per_s']:.1f}", f"{f['speed']:.2f}", f"{f['ttft_ms']:.0f}",
            f"{f['up_bytes_per_token']:.0f}", f"{f['down_bytes_per_token']:.0f}", f"{f['sizes_up']}/{f['sizes_down']}",
            f"{f['identified']:.2f} (chance {f['chance']:.2f})", f"{f['identified_by_downlink']:.2f}",
            "yes" if f["identical"] else "NO",
        )  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"padding": padding}).main(["padding", *sys.argv[1:]]))
