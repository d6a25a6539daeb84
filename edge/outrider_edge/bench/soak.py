"""`outrider bench soak`: what thousands of requests leave behind in a daemon and its cloud: memory, files, threads.

Requests are of all kinds that a device meets, mixed at random by a fixed seed (`KINDS`): whole and streamed, several
choices, stop strings, forced JSON, answered on the device, clients that leave, bodies that are wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_edge.bench.asking import sent, status_of
from outrider_edge.bench.processes import Served, cloud_flags, measured, serving
from outrider_edge.compare import BUNDLED, read_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_SETTLE_S = 3.0


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of request.

    Attributes:
        share: How often it is made, relative to the others.
        more: Fields of the body beside the messages.
        status: What it has to end with.
        path: Where it goes.
        leaves: The client goes away after the first line of the answer.
        raw: The body as it is, in place of all that.
    """

    share: int
    more: dict[str, Any]
    status: int = 200
    path: str = _CHAT
    leaves: bool = False
    raw: bytes | None = None


_SHORT = {"max_tokens": 4, "temperature": 0}
_FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["on", "off"]}}}
KINDS = {
    "whole": Kind(20, _SHORT),
    "streamed": Kind(20, {**_SHORT, "stream": True}),
    "detailed": Kind(10, {**_SHORT, "stream": True, "logprobs": True, "outrider": {"details": True, "smooth": True}}),
    "choices": Kind(5, {**_SHORT, "n": 3, "temperature": 1.0}),
    "stopped": Kind(10, {"max_tokens": 40, "temperature": 0, "stop": [" ", "e"]}),
    "form": Kind(5, {**_SHORT, "response_format": _FORM}),
    "local": Kind(5, {**_SHORT, "outrider": {"local_only": True}}),
    "left": Kind(10, {"max_tokens": 200, "stream": True, "ignore_eos": True}, leaves=True),
    "text": Kind(5, {"prompt": "turn on the", **_SHORT}, path=_TEXT),
    "wrong": Kind(5, {"temperature": -1}, status=400),
    "broken": Kind(3, {}, status=400, raw=b'{"messages": ['),
    "huge": Kind(1, {}, status=413, raw=b" " * (5 << 20)),
    "lost": Kind(1, {}, status=404, path="/v1/nothing"),
}


@dataclass(frozen=True, slots=True)
class Held:
    """What a process holds at one moment; None where the system does not tell (no Linux).

    Attributes:
        requests: Answered so far.
        rss_mb: Resident memory.
        files: Open descriptors, sockets among them.
        threads: Of the process.
    """

    requests: int
    rss_mb: float | None
    files: int | None
    threads: int | None


def held(pid: int, requests: int) -> Held:
    """What a process holds now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
        facts = dict(line.split(":", 1) for line in lines if ":" in line)
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return Held(requests, round(int(facts["VmRSS"].split()[0]) / 1024, 1), files, int(facts["Threads"]))
    except (OSError, KeyError, ValueError):
        return Held(requests, None, None, None)


def growth_mb(curve: Sequence[Held]) -> float | None:
    """Growth of resident memory over the last half of a curve, per 1,000 requests: slope of the least squares."""
    points = [(one.requests, one.rss_mb) for one in curve[len(curve) // 2 :] if one.rss_mb is not None]
    if len(points) < 2:
        return None
    mean_x, mean_y = (sum(column) / len(points) for column in zip(*points, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    return round(1000 * slope, 3)


@click.command()
@click.option("--requests", type=click.IntRange(2), default=10_000, show_default=True, help="Requests in all.")
@click.option("--at-once", type=click.IntRange(1), default=4, show_default=True, help="Requests at once.")
@click.option("--samples", type=click.IntRange(2), default=40, show_default=True, help="Points of the curve.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the mixture.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def soak(*, as_json: bool, **flags: Any) -> None:
    """Ask a daemon thousands of things; tell what it and its cloud hold along the way."""
    result = measured(measure(**flags))
    if as_json:
        click.echo(json.dumps(result))
        return
    for side in ("edge", "cloud"):
        click.echo(f"{side}: {result[side]['growth_mb_per_1000']} MB per 1,000 requests over the last half")
        for point in result[side]["curve"]:
            words = "  {requests:>7} requests  {rss_mb:>7} MB  {files:>4} files  {threads:>3} threads"
            click.echo(words.format(**point))
    click.echo(f"unexpected: {json.dumps(result['unexpected'])}")


async def measure(requests: int, at_once: int, samples: int, seed: int) -> dict[str, Any]:
    """Run both processes and ask; see the command."""
    async with (
        serving("outrider_cloud.cli", *cloud_flags("bundled", 1, 0)) as cloud,
        serving("outrider_edge.cli", "serve", "--listen", "127.0.0.1:0", "--cloud", cloud.address) as edge,
    ):
        started = time.perf_counter()
        mixture = random.Random(seed).choices(list(KINDS), [kind.share for kind in KINDS.values()], k=requests)  # noqa: S311 - a mixture, no secret
        curves: dict[str, list[Held]] = {"edge": [], "cloud": []}
        unexpected: dict[str, int] = {}
        for first in range(0, requests, max(1, requests // samples)):
            await _ask_all(edge.address, mixture[first : first + max(1, requests // samples)], at_once, unexpected)
            _note(curves, edge, cloud, min(requests, first + max(1, requests // samples)))
        await asyncio.sleep(_SETTLE_S)  # sessions of clients that left last
        _note(curves, edge, cloud, requests)
        return {
            **{
                side: {"growth_mb_per_1000": growth_mb(curve), "curve": [asdict(one) for one in curve]}
                for side, curve in curves.items()
            },
            "kinds": {name: mixture.count(name) for name in KINDS},
            "unexpected": unexpected,
            "wall_s": round(time.perf_counter() - started, 1),
            "setting": {"requests": requests, "at_once": at_once, "seed": seed},
            "machine": {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "system": platform.platform()},
        }


def _note(curves: dict[str, list[Held]], edge: Served, cloud: Served, requests: int) -> None:
    for side, process in (("edge", edge), ("cloud", cloud)):
        curves[side].append(held(process.pid, requests))


async def _ask_all(url: str, names: Sequence[str], at_once: int, unexpected: dict[str, int]) -> None:
    left = iter(enumerate(names))
    chats = read_requests(BUNDLED)

    async def worker() -> None:
        for index, name in left:
            kind = KINDS[name]
            got = await _ask(url, kind, chats[index % len(chats)])
            if got != kind.status:
                unexpected[f"{name}: {got}"] = unexpected.get(f"{name}: {got}", 0) + 1

    await asyncio.gather(*(worker() for _ in range(at_once)))


async def _ask(url: str, kind: Kind, chat: Sequence[dict[str, Any]]) -> int | str:
    """The status, or what went wrong on the way."""
    words = {} if "prompt" in kind.more else {"messages": chat}
    body = kind.raw if kind.raw is not None else json.dumps({**words, **kind.more}).encode()
    try:
        async with sent(url, kind.path, body) as reader:
            status = await status_of(reader)
            if not kind.leaves:
                text = await reader.read()
                if status == 200 and b'"error"' in text:
                    return f"error in the answer: {text[-120:].decode(errors='replace')}"
            return status
    except (OSError, IndexError) as error:
        if kind.status == 413 and isinstance(error, ConnectionResetError):
            return 413  # refused before all of it was taken; what was said is lost with the connection
        return type(error).__name__
