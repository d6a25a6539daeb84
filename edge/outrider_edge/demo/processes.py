"""Starts and stops the demo's processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_START_S = 120.0
_STOP_S = 15.0


@contextlib.contextmanager
def cloud_process(*flags: str) -> Iterator[str]:
    """A verifier on a free loopback port: yields its address, and stops it at the end.

    Raises:
        UnavailableError: if it does not come up; the message has its last words.
    """
    with tempfile.TemporaryDirectory(prefix="outrider-demo-") as folder:
        ready, log = Path(folder) / "address", Path(folder) / "log"
        command = [sys.executable, "-m", "outrider_cloud.cli", "serve", "--listen", "127.0.0.1:0"]
        with log.open("wb") as output:
            process = subprocess.Popen([*command, "--ready-file", str(ready), *flags], stdout=output, stderr=output)  # noqa: S603 - our own interpreter and module
        try:
            yield _wait(process, ready, log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def run_edge(*flags: str) -> int:
    """Run an `outrider edge` command in a process of its own, on this terminal; returns its exit status."""
    return subprocess.run([sys.executable, "-m", "outrider_edge.cli", *flags], check=False).returncode  # noqa: S603 - as above


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path) -> str:
    end = time.monotonic() + _START_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > end:
            words = log.read_text(errors="replace").strip().splitlines()[-3:]
            raise UnavailableError(f"the cloud process did not start: {' | '.join(words) or 'no output'}")
        time.sleep(0.05)
    return ready.read_text()
