"""Commands that start processes of their own, ended in the middle."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from support.daemon import ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Sequence


def below(folder: Path) -> list[str]:
    """Living processes whose temporary files go into a folder: the command, and all that it started."""
    found, mark = [], f"TMPDIR={folder}".encode()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


def ended_in_the_middle(folder: Path, command: Sequence[str], processes: int) -> None:
    """Run a command, end it by SIGTERM once it has so many processes, itself among them: nothing of it is left."""
    environment = {**ENVIRONMENT, "TMPDIR": str(folder)}
    with subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            end = time.monotonic() + 120
            while len(below(folder)) < processes:
                assert process.poll() is None
                assert time.monotonic() < end
                time.sleep(0.05)
            process.terminate()
            assert process.wait(60) != 0
        finally:
            process.kill()
    assert below(folder) == []
    assert list(folder.glob("outrider-*")) == []
