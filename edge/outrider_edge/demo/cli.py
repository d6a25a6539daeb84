"""The command `outrider demo`."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from outrider_edge.compare import read_requests
from outrider_edge.demo.processes import cloud_process, run_edge
from outrider_shared.cli import TypedErrors
from outrider_shared.errors import InternalError
from outrider_shared.processes import ending_on_sigterm

_REQUESTS = 6


@click.command()
@click.option("--prompt", help="What to ask the assistant; otherwise held-out requests are answered.")
@click.option(
    "--requests",
    "count",
    type=click.IntRange(1),
    default=_REQUESTS,
    show_default=True,
    help="Held-out requests to answer.",
)
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=int, default=0, show_default=True, help="Key of the noise.")
@click.option(
    "--max-tokens", type=click.IntRange(1), default=96, show_default=True, help="Tokens of an answer at most."
)
@click.option("--exact/--no-exact", default=True, show_default=True, help="Tell the price of bit-exact rows, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def demo(prompt: str | None, *, count: int, exact: bool, as_json: bool, **flags: Any) -> None:  # fmt: skip
    """Start a cloud and an edge on this machine, answer smart-home requests, and compare with plain streaming."""
    console = Console(highlight=False, stderr=as_json)
    with ending_on_sigterm(), tempfile.TemporaryDirectory(prefix="outrider-demo-") as folder:
        requests = Path(folder) / "requests.jsonl"
        requests.write_text("".join(json.dumps({"messages": m}) + "\n" for m in _conversations(prompt, count)))
        common = ["--requests", str(requests)]
        for name, value in flags.items():
            common += [f"--{name.replace('_', '-')}", str(value)]
        with console.status("starting the cloud"), cloud_process() as address:
            result = _compare(address, common, Path(folder) / "report.json", show=not as_json)
        if exact:
            with console.status("once more with bit-exact rows (--exact)"), cloud_process("--exact") as address:
                result["exact"] = _brief(_compare(address, common, Path(folder) / "exact.json", show=False))
    if prompt is not None:
        result = {**result["requests"][0], **{key: result[key] for key in ("exact",) if key in result}}
    if as_json:
        click.echo(json.dumps(result))
    else:
        _tell(console, result)


def _conversations(prompt: str | None, count: int) -> list[list[dict[str, Any]]]:
    held_out = read_requests("bundled")
    if prompt is None:
        return held_out[:count]
    return [[*held_out[0][:-1], {"role": "user", "content": prompt}]]


def _compare(address: str, flags: list[str], report: Path, *, show: bool) -> dict[str, Any]:
    quiet = [] if show else ["--quiet"]
    status = run_edge("compare", "--cloud", address, *flags, "--report", str(report), *quiet)
    if status != 0:
        raise InternalError(f"the edge process ended with status {status}", hint="its own message is above")
    result: dict[str, Any] = json.loads(report.read_text())
    return result


def _brief(result: dict[str, Any]) -> dict[str, Any]:
    """What exact mode costs: rates of both ways, and whether both gave the same tokens."""
    count = len(result["token_ids"])
    return {
        "wall_s": result["wall_s"],
        "tokens_per_s": count / result["wall_s"],
        "tokens_per_step": result["tokens_per_step"],
        "plain": {"wall_s": result["plain"]["wall_s"], "tokens_per_s": count / result["plain"]["wall_s"]},
        "identical_to_plain": result["identical_to_plain"],
    }


def _tell(console: Console, result: dict[str, Any]) -> None:
    per_draft = result["draft_bytes"] / max(1, result["drafted"])
    console.print(
        f"uplink {result['uplink_bytes']} B, prompts included ({result['draft_messages']} draft messages, "
        f"{per_draft:.1f} B per drafted token with all framing); downlink {result['downlink_bytes']} B"
    )
    if "exact" in result:
        exact = result["exact"]
        console.print(
            f"with bit-exact rows (every step padded to one size): {exact['tokens_per_s']:.0f} tokens/s drafted, "
            f"{exact['plain']['tokens_per_s']:.0f} plain, same text: {'yes' if exact['identical_to_plain'] else 'NO'}"
        )


if __name__ == "__main__":
    sys.exit(TypedErrors(commands={"demo": demo}).main(["demo", *sys.argv[1:]]))
