"""A fleet to look at: a real broker, the real service, and simulated devices as processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import urllib3

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.bench.service import Service, new_home, running
from outrider_shared.errors import ConfigError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import encode
from outrider_shared.fleet.messages import Info, PackRef, Presence, Reported, UpdateState, UpdateStatus
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.fleet.transport import Connect
from support.daemon import ENVIRONMENT
from support.mosquitto import device_mqtt
from support.updates import tiny_pack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

DEVICES = [f"shop-{i:05d}" for i in range(18)]
NORTH, SOUTH, WEST = DEVICES[:6], DEVICES[6:12], DEVICES[12:]  # the groups
GOOD, BAD = "draft/int8/good-2.tar", "draft/int8/bad-3.tar"
PEOPLE = {"ann": "operator", "ben": "approver", "dora": "approver", "cleo": "viewer"}
# Quick, so that a test sees its end: two canaries, two in the control group, and evidence of a second or two.
# No latency gate: a bad draft makes answers slower too, and either gate might be the first to stop it.
QUICK: dict[str, Any] = {
    "stages": [{"percent": 34, "soak_s": 0}, {"percent": 100, "soak_s": 0}], "per_minute": 6000,
    "control_percent": 34, "gates": {"min_baseline": 2, "min_pairs": 40, "alpha": 0.05, "latency": False},
}  # fmt: skip


class Watched:
    """The running fleet.

    Attributes:
        service: Asks the API as the administrator.
        tokens: Of `PEOPLE`.
    """

    def __init__(self, service: Service) -> None:
        self.service, self.url = service, service.url
        self.tokens = {
            name: service.send("PUT", f"/tokens/{name}", {"role": role})["token"] for name, role in PEOPLE.items()
        }
        for group, members in (("north", NORTH), ("south", SOUTH), ("west", WEST)):
            service.send("PUT", f"/groups/{group}", {"members": members})

    def as_(self, person: str) -> Service:
        """The API as somebody asks it."""
        return Service(self.service.home, self.service.pid, self.url, self.tokens[person])

    def stream(self, person: str) -> Iterator[bytes]:
        """The stream of changes as somebody reads it, until the service ends it."""
        headers = {"authorization": f"Bearer {self.tokens[person]}"}
        answer = urllib3.request("GET", f"{self.url}/api/live", headers=headers, preload_content=False, timeout=60)
        assert answer.status == 200
        yield from answer.stream(1 << 16)

    @contextlib.contextmanager
    def devices(self, prefix: str, count: int) -> Iterator[subprocess.Popen[bytes]]:
        """Simulated devices as a process, which may be killed."""
        command = [sys.executable, "-m", "outrider_cloud.fleet.cli", "simulate", "--prefix", prefix]
        flags = ["--draft", "bad=0.35", "--draft", "good=0.85", "--telemetry-s", "0.3", "--requests-s", "4"]
        where = ["--devices", str(count), "--dir", str(self.service.home.folder)]
        process = subprocess.Popen([*command, *flags, *where], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def until(self, path: str, found: Callable[[Any], bool], seconds: float = 120.0) -> Any:
        """What the API answers once it is so."""
        end = time.monotonic() + seconds
        while not found(answer := self.service.ask(path)):
            assert time.monotonic() < end, answer
            time.sleep(0.2)
        return answer

    def settle(self, names: Sequence[str]) -> None:
        """Until each of these has shown enough of its present draft to be compared."""
        for name in names:
            self.until(f"/devices/{name}", lambda told: told["baseline_windows"] > 2)

    def say(self, device: str, *messages: tuple[topics.Topic, object]) -> None:
        """Say something as an enrolled device, over a connection of its own."""
        with ThreadPoolExecutor(1) as beside:  # the caller may be in a loop: Playwright's
            beside.submit(asyncio.run, self._say(device, messages)).result()

    async def _say(self, device: str, messages: Sequence[tuple[topics.Topic, object]]) -> None:
        home = self.service.home
        broker = MqttBroker(device_mqtt(home, device))
        connection = await broker.connect(Connect(device))
        for topic, message in messages:
            name = topic.of(home.settings.tenant, device)
            await connection.publish(name, encode(message), qos=topic.qos, retain=topic.retain)
        await connection.close()


def hostile(text: str, rollout: str) -> tuple[tuple[topics.Topic, object], ...]:
    """All that a device may say in its own words, saying that."""
    pack = PackRef(text, "e" * 64, text)
    info = Info(1, time.time(), text[:128], text, "int8", "0" * 64, pack, labels={text: text})
    reported = Reported(1, 0, time.time(), 1, 0, pack, {text: text}, refused=text[:64], message=text)
    seq = time.time_ns() // 1000
    failed = UpdateStatus(rollout, 1, text, UpdateState.FAILED, seq, time.time(), 0.0, text[:64], text)
    return (
        (topics.PRESENCE, Presence(online=True, bd=1, ts=time.time())), (topics.INFO, info),
        (topics.REPORTED, reported), (topics.UPDATE_STATUS, failed),
    )  # fmt: skip


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    """The fleet, with its devices here; the test is skipped where there is no broker to run."""
    home = new_home(folder / "fleet")
    for name, version in (("good", "2"), ("bad", "3")):
        publish(home.repository, tiny_pack(folder / name, name), version=version, device_class="int8")
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        try:
            service = stack.enter_context(running(home))
        except ConfigError as error:
            pytest.skip(str(error))
        found = Watched(service)
        stack.enter_context(found.devices("shop", len(DEVICES)))
        found.until("/overview", lambda seen: seen["online"] == len(DEVICES) and seen["tokens"] > 0)
        yield found
