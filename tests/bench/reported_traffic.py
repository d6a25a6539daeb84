"""Real traffic for `outrider train replay`: a cloud that keeps refused drafts, a device that lets it, many requests.

    python tests/bench/reported_traffic.py --pack PACK --requests traffic.jsonl --limit 400 --store STORE

Both are the commands themselves, as processes; the requests are asked one after the other at temperature 0.7, seed i.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMMAND = "from outrider_{side}.cli import {side}; {side}()"
_START_S = 300.0


@contextlib.contextmanager
def service(side: str, arguments: list[str], ready: Path) -> Iterator[str]:
    """One side's `serve`, up to its ready file; ended in order."""
    command = [sys.executable, "-c", _COMMAND.format(side=side), "serve", *arguments, "--ready-file", str(ready)]
    process = subprocess.Popen(command, stderr=(ready.with_suffix(".log")).open("w"))
    try:
        end = time.monotonic() + _START_S
        while not (ready.exists() and ready.read_text().strip()):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{side} does not start:\n{ready.with_suffix('.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield ready.read_text().strip()
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, messages: list[dict[str, str]], seed: int, most: int) -> int:
    """One request; the tokens of its answer."""
    body = {"model": "outrider", "messages": messages, "temperature": 0.7, "seed": seed, "max_tokens": most}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        return int(json.load(reply)["usage"]["completion_tokens"])


def main() -> None:
    """Ask them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--requests", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=400)
    parser.add_argument("--max-tokens", type=int, default=96)
    flags = parser.parse_args()
    rows = [json.loads(line) for line in flags.requests.read_text("utf-8").splitlines()[: flags.limit]]
    with tempfile.TemporaryDirectory() as scratch:
        at, keep = Path(scratch), ["--replay-dir", str(flags.store)]
        with service("cloud", ["--listen", "127.0.0.1:0", *keep], at / "cloud") as cloud:
            device = ["--cloud", cloud, "--draft", flags.pack, "--listen", "127.0.0.1:0", "--report-refused"]
            with service("edge", device, at / "edge") as url:
                tokens = [ask(url, row["messages"], seed, flags.max_tokens) for seed, row in enumerate(rows)]
    sys.stdout.write(json.dumps({"requests": len(tokens), "tokens": sum(tokens), "store": str(flags.store)}) + "\n")


if __name__ == "__main__":
    main()
