"""`outrider bench daemon`: what the endpoint costs a device, and how evenly its tokens come."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outrider_edge.bench.asking import chunks_of, sent
from outrider_edge.bench.processes import Served, cloud_flags, measured, serving
from outrider_edge.compare import BUNDLED, read_requests
from outrider_shared.cli import TypedErrors
from outrider_shared.emulator.control import LinkProcess
from outrider_shared.emulator.profile import LinkProfile
from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

_PERCENTILES = (50, 95, 99)


@dataclass
class Gaps:
    """When tokens came, over some answers.

    Attributes:
        gaps_ms: Between tokens; those that came in one chunk are 0 apart.
        last_ms: From the request to the last token, per answer.
        first_ms: To the first.
    """

    gaps_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    last_ms: list[float] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        shares = {f"gap_p{p}_ms": round(percentile(self.gaps_ms, p), 2) for p in _PERCENTILES}
        means = {"first_ms": _mean(self.first_ms), "last_ms": _mean(self.last_ms)}
        return {**shares, "gap_max_ms": round(max(self.gaps_ms, default=0.0), 2), **means, "tokens": len(self.gaps_ms)}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` percent of all do not exceed (nearest rank); 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * int(share) // 100) - 1)] if ordered else 0.0


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / max(1, len(values)), 2)


@click.command()
@click.option("--requests", type=click.IntRange(1), default=12, show_default=True, help="Answers per setting.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=64, show_default=True, help="Tokens of an answer at most."
)
@click.option("--rtt-ms", type=click.FloatRange(0), default=50.0, show_default=True, help="Emulated round trip.")
@click.option(
    "--step-ms",
    type=click.FloatRange(0),
    default=25.0,
    show_default=True,
    help="Least time of a cloud step; 0: as it is.",
)
@click.option("--idle-s", type=click.FloatRange(1), default=20.0, show_default=True, help="How long to watch it idle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def daemon(*, as_json: bool, **flags: Any) -> None:
    """Measure the endpoint: start, memory, idle processor time, gaps between tokens with and without smoothing."""
    result = measured(measure(**flags))
    if as_json:
        click.echo(json.dumps(result))
        return
    for key, value in result.items():
        click.echo(f"{key:<18} {json.dumps(value) if isinstance(value, dict) else value}")


async def measure(requests: int, max_tokens: int, rtt_ms: float, step_ms: float, idle_s: float) -> dict[str, Any]:
    """Run all processes and measure; see the command."""
    chats = (read_requests(BUNDLED) * (1 + requests // 20))[:requests]
    async with (
        serving("outrider_cloud.cli", *cloud_flags("bundled", 1, step_ms)) as cloud,
        LinkProcess(cloud.address, LinkProfile(rtt_s=rtt_ms / 1e3), 1) as relay,
    ):
        started = time.perf_counter()
        flags = ["serve", "--listen", "127.0.0.1:0", "--cloud", relay.address]
        async with serving("outrider_edge.cli", *flags) as edge:
            ready_s = time.perf_counter() - started
            idle = await _idle(edge, idle_s)
            loaded_mb = _rss_mb(edge.pid)
            await _ask(edge.address, chats[0], max_tokens, Gaps(), smooth=False)
            plain, smooth = Gaps(), Gaps()
            for chat in chats:
                await _ask(edge.address, chat, max_tokens, plain, smooth=False)
                await _ask(edge.address, chat, max_tokens, smooth, smooth=True)
            return {
                "start_to_ready_s": round(ready_s, 2),
                "idle_cpu_percent": idle,
                "rss_loaded_mb": loaded_mb,
                "rss_after_mb": _rss_mb(edge.pid),
                "as_they_come": plain.as_dict(),
                "smoothed": smooth.as_dict(),
                "price_of_smoothing_ms": round(_mean(smooth.last_ms) - _mean(plain.last_ms), 2),
                "setting": {"requests": requests, "max_tokens": max_tokens, "rtt_ms": rtt_ms, "step_ms": step_ms},
                "machine": {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "system": platform.platform()},
            }


async def _idle(edge: Served, idle_s: float) -> float | None:
    before = edge.cpu_s()
    await asyncio.sleep(idle_s)
    after = edge.cpu_s()
    return None if before is None or after is None else round(100 * (after - before) / idle_s, 3)


def _rss_mb(pid: int) -> float | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((round(int(line.split()[1]) / 1024, 1) for line in lines if line.startswith("VmRSS:")), None)


async def _ask(url: str, chat: list[dict[str, Any]], max_tokens: int, gaps: Gaps, *, smooth: bool) -> None:
    body = json.dumps({
        "messages": chat, "temperature": 0, "max_tokens": max_tokens, "stream": True,
        "outrider": {"details": True, "smooth": smooth},
    }).encode()  # fmt: skip
    started, last = time.perf_counter(), 0.0
    async with sent(url, "/v1/chat/completions", body) as reader:
        async for chunk in chunks_of(reader):
            if "error" in chunk:
                raise UnavailableError(chunk["error"]["message"])
            now = time.perf_counter()
            for _ in chunk.get("outrider", {}).get("tokens", ()):
                if last:
                    gaps.gaps_ms.append(1000 * (now - last))
                else:
                    gaps.first_ms.append(1000 * (now - started))
                last = now
    gaps.last_ms.append(1000 * (last - started))


@click.group(cls=TypedErrors)
def _alone() -> None:
    """For `python -m`."""


if __name__ == "__main__":
    _alone.add_command(daemon)
    _alone()
