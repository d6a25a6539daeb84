"""A fleet service with its broker as processes of their own, in a folder of their own, for measurements."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import urllib3

from outrider_cloud.fleet import broker
from outrider_cloud.fleet.home import ADMIN_TOKEN, FleetHome, Settings
from outrider_shared.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TICKS_S = os.sysconf("SC_CLK_TCK")
_START_S = 120.0


class Service:
    """A running service.

    Attributes:
        home: Its folder.
        pid: Of `outrider fleet serve`.
        url: Of its API.
    """

    def __init__(self, home: FleetHome, pid: int, url: str, token: str) -> None:
        self.home, self.pid, self.url = home, pid, url
        self._headers = {"authorization": f"Bearer {token}"}
        self._http = urllib3.PoolManager(maxsize=16)

    def get(self, path: str) -> urllib3.BaseHTTPResponse:
        """One answer, read whole.

        Raises:
            UnavailableError: if it is no 200.
        """
        answer = self._http.request("GET", self.url + path, headers=self._headers, timeout=60, retries=False)
        if answer.status != 200:
            raise UnavailableError(f"{path} answered HTTP {answer.status}: {answer.data[:200]!r}")
        return answer

    def ask(self, path: str) -> Any:
        """One answer of the API, as JSON."""
        return self.get(f"/api{path}").json()

    def send(self, verb: str, path: str, body: object) -> Any:
        """Change something."""
        answer = self._http.request(
            verb, f"{self.url}/api{path}", json=body, headers=self._headers, timeout=120, retries=False
        )
        if answer.status >= 300:
            raise UnavailableError(f"{path} answered HTTP {answer.status}: {answer.data[:200]!r}")
        return answer.json()

    def cpu_s(self) -> float:
        """Processor seconds of the service so far."""
        return process_cpu_s(self.pid)


def process_cpu_s(pid: int) -> float:
    """Processor seconds of a process so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_S


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in found]


def new_home(folder: Path) -> FleetHome:
    """A fleet's folder on free ports."""
    mqtt, https = free_ports(2)
    return FleetHome.init(folder, Settings(host="127.0.0.1", mqtt_port=mqtt, https_port=https))


@contextlib.contextmanager
def running(home: FleetHome) -> Iterator[Service]:
    """Broker and service of a folder, until the block ends.

    Raises:
        ConfigError: if Mosquitto is not installed.
        UnavailableError: if the service does not come up.
    """
    mosquitto = broker.start(home.folder / "broker")
    try:
        with serving(home) as service:
            yield service
    finally:
        mosquitto.terminate()
        mosquitto.wait(30)


@contextlib.contextmanager
def serving(home: FleetHome) -> Iterator[Service]:
    """The service of a folder whose broker runs, until the block ends.

    Raises:
        UnavailableError: if it does not come up.
    """
    (port,) = free_ports(1)
    log = home.folder / "serve.log"
    arguments = ["serve", "--dir", str(home.folder), "--admin-port", str(port)]
    with log.open("ab") as stream:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "outrider_cloud.fleet.cli", *arguments], stdout=stream, stderr=stream
        )
    try:
        yield _reached(home, process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        process.wait(30)


def _reached(home: FleetHome, serving: subprocess.Popen[bytes], url: str, log: Path) -> Service:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and serving.poll() is None:
        with contextlib.suppress(OSError, UnavailableError, urllib3.exceptions.HTTPError, json.JSONDecodeError):
            found = Service(home, serving.pid, url, (home.folder / ADMIN_TOKEN).read_text("utf-8").strip())
            found.ask("/me")
            return found
        time.sleep(0.1)
    raise UnavailableError(f"the service did not come up: {log.read_text('utf-8')[-2000:]}")
