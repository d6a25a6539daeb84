"""A real PostgreSQL of its own for tests: a fresh cluster on a free port, gone afterwards."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outrider_shared.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACES = "/usr/lib/postgresql/*/bin/{}", "/usr/pgsql-*/bin/{}", "/opt/homebrew/opt/postgresql*/bin/{}"


def program(name: str) -> str:
    """Where a program of PostgreSQL is; the test is skipped where it is not installed."""
    found = shutil.which(name)
    for pattern in _PLACES:
        found = found or next((str(path) for path in sorted(Path("/").glob(pattern.format(name)[1:]))), None)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed (Debian, Ubuntu: sudo apt-get install postgresql)")
    return found


def _user() -> str | None:
    """The server does not run as root: then as the user whom the package made, or nobody."""
    if os.geteuid():
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    pytest.skip("PostgreSQL does not run as root, and there is no user to run it as")


@contextlib.contextmanager
def postgres() -> Iterator[str]:
    """A DSN with the fleet's database on it."""
    initdb, server = program("initdb"), program("postgres")
    user, port = _user(), free_port()
    # Not under pytest's folders, which other users may not enter.
    with tempfile.TemporaryDirectory(prefix="outrider-pg-") as temporary:
        folder = Path(temporary)
        if user is not None:
            shutil.chown(folder, user)
        data = folder / "data"
        command = [initdb, "-D", str(data), "-U", "fleet", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"]
        subprocess.run(command, check=True, user=user, capture_output=True, cwd="/")
        settings = (f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={folder}", "fsync=off")
        options = [part for setting in settings for part in ("-c", setting)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([server, "-D", str(data), *options], user=user, stdout=log, stderr=log, cwd="/")
        try:
            _until_ready(process, port, folder / "log")
            yield f"postgresql://fleet@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(30)


def _until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import time

    import psycopg

    end = time.monotonic() + 60
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"postgresql://fleet@127.0.0.1:{port}/postgres", connect_timeout=5).close()
            return
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
