"""A real cloud and a real daemon as processes, with the bundled pair."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ENVIRONMENT = {
    **os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OUTRIDER_LOG": "info",
    "OMP_NUM_THREADS": "1",
    "OUTRIDER_EDGE_CONFIG": "", "XDG_CONFIG_HOME": "/nonexistent",
}  # fmt: skip
HOUSE = (
    "You are 'Al', a helpful AI Assistant that controls the devices in a house.\nDevices:\n"
    "light.kitchen 'Kitchen Light' = on\nfan.office 'Office Fan' = off"
)
CHAT = [{"role": "system", "content": HOUSE}, {"role": "user", "content": "turn off the kitchen light"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
        },
    }
    for name in ("HassTurnOff", "HassTurnOn")
]


@dataclass
class Running:
    """A process and what it said about itself."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


def call(
    device: Running,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: Any = None,
    timeout: float = 120,
    **headers: str,
) -> tuple[int, Any]:
    """Status and JSON of one request; without JSON, the headers."""
    answer = send(device, method, path, body, timeout, **headers)
    text = answer.read()
    return answer.status, json.loads(text) if text else dict(answer.headers)


def send(
    device: Running,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: Any = None,
    timeout: float = 240,
    **headers: str,
) -> http.client.HTTPResponse:
    """One request on a connection of its own, which ends with the answer."""
    place = urlsplit(device.address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection.request(method, path, data, {"content-type": "application/json", "connection": "close", **headers})
    return connection.getresponse()


@contextlib.contextmanager
def cloud(folder: Path, *flags: str, listen: str = "127.0.0.1:0") -> Iterator[Running]:
    """A serving cloud; `address` is HOST:PORT."""
    with _process(folder, "outrider_cloud.cli", "serve", "--listen", listen, "--threads", "1", *flags) as running:
        yield running


@contextlib.contextmanager
def daemon(folder: Path, cloud_address: str, *flags: str, **environment: str) -> Iterator[Running]:
    """A serving daemon; `address` is its base URL."""
    command = ["outrider_edge.cli", "serve", "--listen", "127.0.0.1:0", "--cloud", cloud_address, *flags]
    with _process(folder, *command, **environment) as running:
        yield running


@contextlib.contextmanager
def _process(folder: Path, module: str, *arguments: str, **environment: str) -> Iterator[Running]:
    stamp = time.monotonic_ns()
    ready, log = folder / f"ready-{stamp}", folder / f"log-{stamp}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments, "--ready-file", str(ready)],
            env={**ENVIRONMENT, **environment}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while not (ready.exists() and ready.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
        yield Running(ready.read_text(), process, log)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
