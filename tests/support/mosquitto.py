"""A real Mosquitto on a free port, configured as `outrider fleet init` does."""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import pytest

from outrider_cloud.fleet import broker
from outrider_cloud.fleet.home import FleetHome, Settings
from outrider_shared.errors import ConfigError
from outrider_shared.fleet.mqtt import MqttConfig
from outrider_shared.processes import free_port

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path


def new_fleet(folder: Path, *devices: str) -> FleetHome:
    """A fleet's folder with free ports and these devices."""
    home = FleetHome.init(folder, Settings(mqtt_port=free_port(), https_port=free_port(), host="127.0.0.1"))
    for device in devices:
        home.enrol(device)
    return home


def device_mqtt(home: FleetHome, device: str, **changes) -> MqttConfig:
    """How a device of that fleet connects."""
    folder = home.device_folder(device)
    files = {"ca": folder / "ca.pem", "certificate": folder / "device.pem", "key": folder / "device.key"}
    return MqttConfig("127.0.0.1", home.settings.mqtt_port, **{**files, "timeout_s": 10.0, **changes})


class RunningBroker:
    """The broker's process; may be killed and started again."""

    def __init__(self, home: FleetHome) -> None:
        self.home = home
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it listens."""
        self.process = broker.start(self.home.folder / "broker")
        end = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.home.settings.mqtt_port), 1):
                return
            assert self.process.poll() is None, (self.home.folder / "broker" / "mosquitto.log").read_text()
            assert time.monotonic() < end, "mosquitto did not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def running(home: FleetHome) -> Iterator[RunningBroker]:
    """A broker for a fleet; the test is skipped where there is none to run."""
    try:
        broker.find_mosquitto()
    except ConfigError as error:
        pytest.skip(str(error))
    found = RunningBroker(home)
    found.start()
    try:
        yield found
    finally:
        found.kill()
