"""The command `outrider link`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Any

import click

from outrider_shared.cli import TypedErrors
from outrider_shared.emulator.control import obey
from outrider_shared.emulator.faults import Fault, FaultKind, FaultSchedule
from outrider_shared.emulator.profile import LinkPlan, LinkProfile
from outrider_shared.emulator.proxy import LinkProxy, precise_loop
from outrider_shared.errors import ConfigError

_FAULT = "SECOND:cut, SECOND:half-open, SECOND:stall:SECONDS or SECOND:refuse:SECONDS"


@click.command()
@click.option(
    "--listen",
    default="127.0.0.1:50062",
    show_default=True,
    help="HOST:PORT to take connections on; port 0 takes a free one.",
)
@click.option("--to", required=True, help="HOST:PORT to pass them to.")
@click.option(
    "--rtt-ms", type=click.FloatRange(0), default=0.0, show_default=True, help="Round-trip time; half of it each way."
)
@click.option(
    "--jitter-ms",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Spread of each delay; never reorders.",
)
@click.option("--rate-kbit", default="0", show_default=True, help="Kilobits per second, or UP/DOWN; 0 is unlimited.")
@click.option(
    "--loss",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Part of the segments that come only after a retransmission.",
)
@click.option(
    "--cut-every-s",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="Mean life of a connection; 0 is for ever.",
)
@click.option(
    "--half-open",
    type=click.FloatRange(0, 1),
    default=0.0,
    show_default=True,
    help="Part of those ends that swallow bytes silently instead.",
)
@click.option(
    "--change",
    "changes",
    multiple=True,
    metavar="SECOND:RTT_MS",
    help="Another round-trip time from then on; may be given again.",
)
@click.option("--fault", "faults", multiple=True, metavar="SECOND:KIND", help=f"{_FAULT}; may be given again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all randomness.")
@click.option(
    "--control",
    is_flag=True,
    help="Take changes as JSON lines on standard input, answer with byte counts; end with it.",
)
def link(
    listen: str, to: str, changes: tuple[str, ...], faults: tuple[str, ...], seed: int, *, control: bool, **flags: Any
) -> None:
    """Emulate a bad network between a device and a cloud: a TCP proxy that delays, stalls and breaks."""
    plan = LinkPlan.of(_profile(flags), {_number(at): {"rtt_s": _number(ms) / 1e3} for at, ms in _pairs(changes)})
    schedule = FaultSchedule(tuple(sorted((_fault(text) for text in faults), key=lambda fault: fault.at_s)))
    with contextlib.closing(precise_loop()) as loop, contextlib.suppress(KeyboardInterrupt):
        loop.run_until_complete(_run(LinkProxy(to, plan, schedule, seed, listen), control=control))


async def _run(proxy: LinkProxy, *, control: bool) -> None:
    stopping, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with proxy:
        told = asyncio.ensure_future(stopping.wait())
        if control:
            obeying = asyncio.ensure_future(obey(proxy))
            done, _ = await asyncio.wait({told, obeying}, return_when=asyncio.FIRST_COMPLETED)
            for task in (told, obeying):
                task.cancel()
            await asyncio.gather(told, obeying, return_exceptions=True)
            if obeying in done:
                await obeying
            return
        click.echo(f"emulating a link on {proxy.address}", err=True)
        await told
    click.echo(" ".join(f"{name}={value}" for name, value in proxy.counters.as_dict().items()), err=True)


def _profile(flags: dict[str, Any]) -> LinkProfile:
    up, _, down = flags["rate_kbit"].partition("/")
    return LinkProfile(
        rtt_s=flags["rtt_ms"] / 1e3,
        jitter_s=flags["jitter_ms"] / 1e3,
        up_bps=_number(up) * 1e3,
        down_bps=_number(down or up) * 1e3,
        loss=flags["loss"],
        cut_every_s=flags["cut_every_s"],
        half_open=flags["half_open"],
    )


def _pairs(texts: tuple[str, ...]) -> list[tuple[str, str]]:
    pairs = [(at, value) for at, _, value in (text.partition(":") for text in texts)]
    if bare := [at for at, value in pairs if not value]:
        raise ConfigError(f"change {bare[0]!r} has no round-trip time", hint="use SECOND:RTT_MS")
    return pairs


def _fault(text: str) -> Fault:
    at, _, rest = text.partition(":")
    kind, _, duration = rest.partition(":")
    if kind not in {*FaultKind}:
        raise ConfigError(f"fault {text!r} is unknown", hint=f"use {_FAULT}")
    return Fault(_number(at), FaultKind(kind), _number(duration or "0"))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number") from None


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"link": link}).main(["link", *sys.argv[1:]]))
