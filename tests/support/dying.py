"""`outrider edge agent` whose process is killed at writes of its own: each at most once, whichever life it is.

    python -m support.dying FOLDER KILLED WANTED...

KILLED is a file with the names of the writes that it was killed at, a line each; WANTED are patterns of such names:
`journal good probation after` is the write of the journal that says so, for the roll-out `good`, once it is in place;
`before` is the moment when it is written and not yet in place. With a `+` the state says how often the device started
since the switch, with a `!` that it was decided to go back. The update's own process goes with this one.
"""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import signal
import sys
from pathlib import Path

import outrider_edge.agent.build
from outrider_edge.agent.disk import Disk
from outrider_edge.agent.standalone import run_standalone
from outrider_shared.logs import configure_logs


class DyingDisk(Disk):
    """Every file that matters is written beside and renamed: those moments are the ones to die at."""

    def __init__(self) -> None:
        self._killed, self._wanted = Path(sys.argv[2]), sys.argv[3:]
        self._standing = "none committed"

    def rename(self, source: Path, target: Path) -> None:
        name = {"journal.json": "journal", "agent.json": "agent", "current": "pointer"}.get(target.name, "outbox")
        if name == "journal":
            self._standing = _standing(json.loads(source.read_bytes()))
        self._perhaps(f"{name} {self._standing} before")
        super().rename(source, target)
        self._perhaps(f"{name} {self._standing} after")

    def _perhaps(self, write: str) -> None:
        if not any(fnmatch.fnmatchcase(write, pattern) for pattern in self._wanted):
            return
        if write in self._killed.read_text().splitlines():
            return
        with self._killed.open("a") as stream:
            stream.write(write + "\n")
        os.kill(os.getpid(), signal.SIGKILL)


def _standing(record: dict) -> str:
    doomed = "!" if record["code"] and record["state"] in {"switched", "probation"} else ""
    return f"{record['rollout'] or 'none'} {record['state']}{'+' * record['boots']}{doomed}"


if __name__ == "__main__":
    configure_logs()
    outrider_edge.agent.build.Disk = DyingDisk
    asyncio.run(run_standalone(Path(sys.argv[1])))
