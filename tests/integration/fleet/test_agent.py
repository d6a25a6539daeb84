"""A device's agent as a process of its own, a real broker, a real artifact server, real packs."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_edge.agent.standalone import run_standalone
from outrider_edge.agent.update.selftest import make_golden
from outrider_shared.errors import RefusedError
from outrider_shared.fleet import topics
from outrider_shared.fleet.desired import Assignment, Config, Desired, sign
from outrider_shared.fleet.messages import (
    Command,
    CommandName,
    Info,
    Presence,
    Reported,
    Telemetry,
    UpdateState,
    UpdateStatus,
)
from outrider_shared.packs import bundled_pack
from support.artifacts import artifact_server
from support.mosquitto import new_fleet, running
from support.plane import plane_of
from support.updates import variant

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OUTRIDER_LOG": "info"}
QUICK = Config(telemetry_s=0.2, probation_s=0.0)


class Device:
    """The agent's process; may be killed and started again."""

    def __init__(self, home, name: str) -> None:
        self._folder, self._log = home.device_folder(name), home.folder / f"{name}.log"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "outrider_edge.cli", "agent", str(self._folder)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)

    def end(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(30)

    @property
    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    home = new_fleet(tmp_path_factory.mktemp("fleet") / "f", "d1", "d2")
    with running(home) as broker, artifact_server(home):
        yield home, broker


def assignment(home, path: str, rollout: str, attempt: int = 1) -> Assignment:
    return Assignment(rollout, attempt, path, home.repository.listed()[path].hashes["sha256"])


def test_a_device_from_birth_to_goodbye(fleet, tmp_path):
    """Enrolled, online, configured, commanded, updated while killed, refused a replay, broker killed, gone."""
    from outrider_shared.fleet.mqtt import MqttBroker

    home, broker = fleet
    pack = variant(bundled_pack(), tmp_path / "next", "next")
    path = publish(home.repository, pack, version="1", golden=make_golden(pack))
    device = Device(home, "d1")

    async def run():
        async with plane_of(home, MqttBroker(home.mqtt())) as (plane, seen):
            device.start()
            info = await seen.until(Info)
            assert (info.device_class, info.active.target) == ("int8", "bundled")
            assert (await seen.until(Presence)).online

            first = Desired("d1", 1, 1, time.time(), QUICK)
            await plane.publish_desired(first)
            reported = await seen.until(Reported, lambda m: m.version == 1)
            assert reported.config["telemetry_s"] == 0.2
            assert (await seen.until(Telemetry)).window_s > 0

            now = time.time()
            for name, code in ((CommandName.PING, ""), (CommandName.RESTART_DRAFT, ""), (CommandName.COLLECT_LOGS, "")):
                assert (await plane.command(Command(f"c-{name}", "d1", name, now, now + 30), 30)).code == code
            forged = Command("c-2", "d2", CommandName.PING, now, now + 30)
            connection = await plane._session.connected()
            await connection.publish(topics.COMMAND.of("main", "d1"), home.signer.sign("command", forged))
            stale = await plane.command(Command("c-old", "d1", CommandName.PING, now - 90, now - 60), 30)
            assert stale.code == "replay"

            await plane.publish_desired(Desired("d1", 1, 2, time.time(), QUICK, assignment(home, path, "roll")))
            await seen.until(UpdateStatus, lambda m: m.state is UpdateState.DOWNLOADING)
            device.end(signal.SIGKILL)
            assert not (await seen.until(Presence, lambda m: not m.online)).online
            device.start()
            await seen.until(UpdateStatus, lambda m: m.state is UpdateState.COMMITTED)
            assert (await seen.until(Reported, lambda m: m.active.target == path)).state is UpdateState.COMMITTED

            await connection.publish(topics.DESIRED.of("main", "d1"), sign(home.signer, first), retain=True)
            assert (await seen.until(Reported, lambda m: m.refused)).refused == "replay"
            await plane.publish_desired(Desired("d1", 1, 3, time.time(), QUICK, assignment(home, path, "roll")))
            await seen.until(Reported, lambda m: m.version == 3)

            born = max(a.message.bd for a in seen.all if isinstance(a.message, Info))
            broker.kill()
            broker.start()
            await seen.until(Telemetry, lambda m: m.bd > born)

            device.end()
            goodbye = await seen.until(Presence, lambda m: m.reason == "goodbye")
            assert not goodbye.online
            assert seen.refusals == []
            assert device.process.returncode == 0, device.log

    try:
        asyncio.run(run())
    finally:
        device.end(signal.SIGKILL)
    assert "fleet_command_refused" in device.log


def test_a_device_killed_at_any_moment_of_an_update_ends_on_a_working_draft(fleet, tmp_path):
    """SIGKILL of the real process as soon as each state is told; the statuses that count come once in order."""
    from outrider_shared.fleet.mqtt import MqttBroker

    home, _ = fleet
    pack = variant(bundled_pack(), tmp_path / "killed", "killed")
    path = publish(home.repository, pack, version="1", golden=make_golden(pack))
    device = Device(home, "d2")
    kills = [UpdateState.VERIFYING, UpdateState.SWITCHED]

    async def run():
        async with plane_of(home, MqttBroker(home.mqtt())) as (plane, seen):
            config = Config(telemetry_s=60.0, probation_s=0.0, probation_boots=20)
            await plane.publish_desired(Desired("d2", 1, 1, time.time(), config, assignment(home, path, "kill")))
            device.start()
            for state in kills:
                told = await seen.until(UpdateStatus, lambda m, state=state: m.rollout == "kill" and m.state is state)
                if told.state.final:
                    break
                device.end(signal.SIGKILL)
                device.start()
            await seen.until(UpdateStatus, lambda m: m.rollout == "kill" and m.state is UpdateState.COMMITTED)
            assert (await seen.until(Reported, lambda m: m.active.target == path)).active.target == path
            numbers = [
                a.message.seq for a in seen.all if isinstance(a.message, UpdateStatus) and a.device == "d2" and a.new
            ]
            assert numbers == sorted(set(numbers))

    try:
        asyncio.run(run())
    finally:
        device.end(signal.SIGKILL)


def test_a_device_under_another_name_than_its_certificates_is_refused_in_a_sentence(fleet, tmp_path):
    """And ends: to try again would change nothing."""
    home, _ = fleet
    folder = tmp_path / "d3"
    shutil.copytree(home.enrol("d3"), folder)
    (folder / "agent.toml").write_text((folder / "agent.toml").read_text().replace("d3", "d9"))
    with pytest.raises(RefusedError, match="'d9' may not publish on"):
        asyncio.run(run_standalone(folder))
