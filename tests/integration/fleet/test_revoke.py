"""A device that is shut out: `outrider fleet revoke`, with broker and service as they are run."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time

import pytest

from outrider_cloud.fleet import broker
from outrider_cloud.fleet.bench.service import new_home, running
from outrider_cloud.fleet.home import ADMIN_TOKEN
from outrider_shared.errors import ConfigError, UnavailableError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import encode
from outrider_shared.fleet.messages import Presence
from outrider_shared.fleet.mqtt import MqttBroker
from outrider_shared.fleet.transport import Connect
from support.daemon import ENVIRONMENT
from support.mosquitto import device_mqtt


@pytest.fixture
def service(tmp_path):
    try:
        broker.find_mosquitto()
    except ConfigError as error:
        pytest.skip(str(error))
    home = new_home(tmp_path / "fleet")
    with running(home) as service:
        yield service


def until(found, seconds=60.0):
    end = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < end
        time.sleep(0.05)


def revoke(service, *names: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outrider_cloud.fleet.cli", "revoke", *names, "--url", service.url]
    return subprocess.run(
        [*command, "--dir", str(service.home.folder)], check=False, env=ENVIRONMENT, capture_output=True, text=True
    )


# paho lets go of a socket whose handshake failed without closing it; the collector does that.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_revoked_device_is_out_at_once_and_its_name_may_be_given_again(service, tmp_path):
    """Its session ends, its certificate is refused, the service forgets it; all of it stands in the audit log."""
    home = service.home
    for name in ("d1", "d2"):
        home.enrol(name)
    files = shutil.copytree(home.device_folder("d1"), tmp_path / "stolen")
    stolen = device_mqtt(home, "d1", ca=files / "ca.pem", certificate=files / "device.pem", key=files / "device.key")
    other = device_mqtt(home, "d2")
    here = topics.PRESENCE.of("main", "d1")

    async def run():
        thief = await MqttBroker(stolen).connect(Connect("d1"))
        await thief.publish(here, encode(Presence(online=True, bd=1, ts=1.0)), retain=True)
        await asyncio.to_thread(until, lambda: service.ask("/overview")["online"] == 1)
        told = await asyncio.to_thread(revoke, service, "d1")
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout.strip() == (
            "revoked d1: the broker refuses it, and its session has ended; the service has forgotten it"
        )
        with pytest.raises(UnavailableError):
            await thief.publish(here, b"still here")
        with pytest.raises(UnavailableError):
            await MqttBroker(stolen).connect(Connect("d1"))
        innocent = await MqttBroker(other).connect(Connect("d2"))
        await innocent.close()
        assert service.ask("/devices")["devices"] == []

        def audited() -> bool:
            actions = {row["action"] for row in service.ask("/audit")["audit"]}
            return {"device.revoked", "connection.refused"} <= actions

        await asyncio.to_thread(until, audited)
        home.enrol("d1")
        again = await MqttBroker(device_mqtt(home, "d1")).connect(Connect("d1"))
        await again.publish(here, encode(Presence(online=True, bd=1, ts=2.0)))
        await again.close()

    asyncio.run(run())


def test_who_is_not_enrolled_cannot_be_revoked_and_is_told_in_a_sentence(service):
    told = revoke(service, "nobody")
    assert told.returncode != 0
    assert "no device 'nobody' was enrolled here" in told.stderr
    assert "Traceback" not in told.stderr
    assert (service.home.folder / ADMIN_TOKEN).exists()
