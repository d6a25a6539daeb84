"""The demo's processes: started one after the other, and stopped in the opposite order however it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

_START_S, _STOP_S = 180.0, 20.0


def listens(port: int) -> bool:
    """Whether somebody does."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@dataclass(slots=True)
class Processes:
    """Our commands, each in a session of its own, so that Ctrl-C reaches us alone and the order of stopping is ours.

    Args:
        folder: Where their logs go.
    """

    folder: Path
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing runs any more."""
        self.stop()

    def start(self, name: str, module: str, *arguments: str) -> None:
        """Start a command of ours; it may take a while until it is of use, see `wait`."""
        with self._log(name).open("wb") as log:
            self._running[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-m", module, *arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env={**os.environ, "OUTRIDER_LOG": "info"},
            )  # fmt: skip

    def wait(self, name: str, ready: Callable[[], bool]) -> None:
        """Until it is ready.

        Raises:
            UnavailableError: if it ends before, or takes too long; with its last words.
        """
        end = time.monotonic() + _START_S
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise UnavailableError(f"the {name} did not get ready in {_START_S:.0f} s: {self._words(name)}")
            time.sleep(0.1)

    def check(self) -> None:
        """All are alive.

        Raises:
            UnavailableError: if one is not.
        """
        for name, process in self._running.items():
            if process.poll() is not None:
                raise UnavailableError(f"the {name} ended with status {process.returncode}: {self._words(name)}")

    def yielding(self, *names: str) -> None:
        """From now on they get what processor time the others leave (Linux)."""
        for name in names:
            for thread in Path(f"/proc/{self._running[name].pid}/task").iterdir():
                os.setpriority(os.PRIO_PROCESS, int(thread.name), 19)

    def stop(self) -> dict[str, int]:
        """End them, the youngest first; returns their statuses. One that does not end is killed, with status -9."""
        statuses = {}
        for name, process in reversed(list(self._running.items())):
            if process.poll() is None:
                process.terminate()
            try:
                statuses[name] = process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                statuses[name] = process.wait()
            del self._running[name]
        return statuses

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _words(self, name: str) -> str:
        lines = self._log(name).read_text("utf-8", "replace").strip().splitlines()[-3:]
        return " | ".join(lines) or "no output"
