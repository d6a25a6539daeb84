"""What the demo sets up: the fleet's folder, its processes, its drafts."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_cloud.fleet.artifacts.publish import publish, read_golden
from outrider_cloud.fleet.broker import find_mosquitto
from outrider_cloud.fleet.demo.packs import disturbed
from outrider_cloud.fleet.demo.processes import Processes, listens
from outrider_cloud.fleet.home import ADMIN_TOKEN, FleetHome, Settings
from outrider_cloud.fleet.operate import Client
from outrider_shared.errors import InternalError, OutriderError
from outrider_shared.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEVICE = "kitchen-1"
_FLEET, _EDGE, _CLOUD = "outrider_cloud.fleet.cli", "outrider_edge.cli", "outrider_cloud.cli"


@dataclass(frozen=True, slots=True)
class Draft:
    """One draft of the story.

    Attributes:
        spread: How far the weights of the bundled draft are disturbed to make it, see `packs`.
        modelled: Acceptance per draft token of the simulated devices with it; about what the real device shows.
    """

    name: str
    spread: float
    modelled: float


FIRST, GOOD, BAD = Draft("draft-1", 0.23, 0.8), Draft("draft-2", 0.0, 0.9), Draft("draft-3", 0.27, 0.66)


@dataclass(frozen=True, slots=True)
class Setting:
    """How large, how quick.

    Attributes:
        devices: Simulated ones, beside the real one.
        telemetry_s: Window of telemetry that devices are configured to.
        page_port: Of page and API; another one where it is taken.
        bundled: Pack of the bundled draft.
    """

    bundled: Path
    devices: int = 50
    telemetry_s: float = 1.0
    page_port: int = 8445


class Stage:
    """The fleet, standing.

    Attributes:
        home: The fleet's folder.
        client: The service's API, as `outrider fleet` commands use it.
        page: Address of the operator's page.
        endpoint: Address of the real device's endpoint.
    """

    def __init__(self, folder: Path, setting: Setting, processes: Processes) -> None:
        find_mosquitto()
        self._folder, self._setting, self._processes = folder, setting, processes
        self.page = f"http://127.0.0.1:{free_port(setting.page_port)}"
        self.endpoint = ""
        self.home = FleetHome.init(
            folder / "fleet", Settings(host="127.0.0.1", mqtt_port=free_port(), https_port=free_port())
        )

    @property
    def client(self) -> Client:
        """As the administrator whose token lies in the folder."""
        return Client(self.page, self.home.folder)

    @property
    def token(self) -> str:
        """For the page."""
        return (self.home.folder / ADMIN_TOKEN).read_text("utf-8").strip()

    def serve(self) -> None:
        """Broker and service."""
        where = ("--dir", str(self.home.folder))
        self._processes.start("broker", _FLEET, "broker", *where)
        self._processes.wait("broker", lambda: listens(self.home.settings.mqtt_port))
        self._processes.start("service", _FLEET, "serve", *where, "--admin-port", self.page.rpartition(":")[2])
        self._processes.wait("service", self._answers)

    def answer(self) -> None:
        """A cloud, and a device that answers with its help; the draft that it came with is the first one."""
        pack = disturbed(self._setting.bundled, self._folder / FIRST.name, FIRST.name, FIRST.spread)
        device = self.home.enrol(DEVICE, labels={"room": "kitchen"})
        listen = "127.0.0.1:0"
        cloud = self._started("cloud", _CLOUD, "serve", "--listen", listen, "--exact")
        fleet = ("--draft", str(pack), "--fleet", str(device))
        self.endpoint = self._started("device", _EDGE, "serve", "--listen", listen, "--cloud", cloud, *fleet)

    def simulate(self) -> None:
        """The other devices."""
        drafts = [flag for draft in (GOOD, BAD) for flag in ("--draft", f"{draft.name}={draft.modelled}")]
        self._processes.start(
            "simulation", _FLEET, "simulate", "--devices", str(self._setting.devices), "--dir", str(self.home.folder),
            "--acceptance", str(FIRST.modelled), "--requests-s", "1.5", *drafts,
        )  # fmt: skip

    def publish(self, draft: Draft) -> str:
        """Make a draft's pack and sign it into the repository, with golden prompts of its own; returns its target."""
        pack = disturbed(self._setting.bundled, self._folder / draft.name, draft.name, draft.spread)
        command = [sys.executable, "-m", _EDGE, "golden", str(pack)]
        told = subprocess.run(command, check=False, capture_output=True, text=True)  # noqa: S603 - our own module
        if told.returncode:
            raise InternalError(f"golden prompts of {pack} could not be made: {told.stderr.strip()}")
        golden = self._folder / f"{draft.name}.golden.json"
        golden.write_text(told.stdout, "utf-8")
        return publish(self.home.repository, pack, version="1", golden=read_golden(golden))

    def check(self) -> None:
        """Everything still runs."""
        self._processes.check()

    def _started(self, name: str, module: str, *arguments: str) -> str:
        file = self._folder / f"{name}.ready"
        self._processes.start(name, module, *arguments, "--ready-file", str(file))
        self._processes.wait(name, lambda: file.exists() and file.read_text("utf-8") != "")
        return file.read_text("utf-8")

    def _answers(self) -> bool:
        try:
            return bool(self.client.call("GET", "/me", timeout_s=5.0))
        except OutriderError:
            return False


def until(stage: Stage, found: Callable[[], bool], seconds: float, pause_s: float = 0.4) -> bool:
    """Look again and again until it is so; False if it does not get so in time.

    Raises:
        UnavailableError: if a process ended meanwhile.
    """
    end = time.monotonic() + seconds
    while not found():
        if time.monotonic() > end:
            return False
        stage.check()
        time.sleep(pause_s)
    return True
