"""Shutting a device out: its certificate goes on the revocation list, the broker reads that, its session ends.

A broker looks at a certificate when a connection begins, so one that stands would go on. It ends because somebody else
connects as that device: a certificate of its name is made for this, used once and thrown away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from outrider_cloud.fleet import pki
from outrider_shared.errors import OutriderError, UnavailableError
from outrider_shared.fleet.mqtt import MqttBroker, MqttConfig
from outrider_shared.fleet.transport import Connect

if TYPE_CHECKING:
    from outrider_cloud.fleet.home import FleetHome


def revoke(home: FleetHome, device: str) -> str:
    """Shut it out for good; its name may be enrolled again. Returns what the broker made of it, in words.

    Raises:
        ConfigError: if there is no such device here, or the authority's key is not.
    """
    home.revoke(device)
    if not _tell_broker(home):
        return "the broker does not run here: give it ca/crl.pem and restart it"
    try:
        asyncio.run(_take_over(home, device))
    except OutriderError as error:
        return f"the broker knows of it; whether a session still stands is not known: {error.message}"
    return "the broker refuses it, and its session has ended"


def _tell_broker(home: FleetHome) -> bool:
    """Let a broker on this machine read the list again; False if there is none."""
    with contextlib.suppress(OSError, ValueError):
        os.kill(int((home.folder / "broker" / "mosquitto.pid").read_text("utf-8")), signal.SIGHUP)
        return True
    return False


async def _take_over(home: FleetHome, device: str) -> None:
    pair = pki.new_client(home.authority, device)
    with tempfile.TemporaryDirectory() as name:
        certificate, key = Path(name) / "device.pem", Path(name) / "device.key"
        certificate.write_bytes(pair.certificate)
        key.touch(mode=0o600)
        key.write_bytes(pair.key)
        settings = home.settings
        try:
            broker = MqttBroker(MqttConfig(settings.host, settings.mqtt_port, home.ca, certificate, key))
            connection = await broker.connect(Connect(device))
        except OSError as error:
            raise UnavailableError(f"the broker cannot be reached: {error}") from error
        await connection.close()
