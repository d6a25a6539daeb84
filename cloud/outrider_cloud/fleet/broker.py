"""Mosquitto: its configuration and access rules, written from `topics`, and running it for development.

What the configuration holds against whom:

- `require_certificate`: nobody without a certificate of the fleet's authority gets past TLS;
- `use_identity_as_username`: the CN is the user, so `%u` in the rules is who the certificate says, not what is claimed;
- `use_username_as_clientid`: a device cannot take another's client id and throw it out;
- `crlfile`: whom the authority shut out stays out (`outrider fleet revoke`; read again at SIGHUP);
- `pattern` rules: a device writes and reads below its own name only.

Mosquitto 2.0 and 2.1 read this file; 2.1 prefers plugins to `acl_file` and takes it until 3.0.
"""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from outrider_cloud.fleet import broker_watch
from outrider_shared.errors import ConfigError
from outrider_shared.fleet import topics
from outrider_shared.fleet.codec import MAX_BYTES
from outrider_shared.ids import SERVICE_PREFIX

_PLACES = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto")


def access_rules(tenant: str, services: tuple[str, ...]) -> str:
    """Mosquitto's ACL file."""
    lines = []
    for service in services:
        assert service.startswith(SERVICE_PREFIX), "devices have no rules of their own"
        lines += [f"user {service}", f"topic readwrite {topics.ROOT}/{tenant}/#", ""]
    for topic in topics.DEVICE_TOPICS:
        verb = "write" if topic.sender is topics.Sender.DEVICE else "read"
        lines.append(f"pattern {verb} {topic.of(tenant, '%u')}")
    lines.append(f"pattern read {topics.service_state(tenant)}")
    return "\n".join(lines) + "\n"


def configuration(folder: Path, *, host: str, port: int, ca: Path, certificate: Path, key: Path, revoked: Path) -> str:
    """Mosquitto's configuration; `folder` holds the ACL file and what the broker remembers."""
    return f"""\
# Written by `outrider fleet init`; run with: mosquitto -c {folder / "mosquitto.conf"}
per_listener_settings false
user {getpass.getuser()}
pid_file {folder / "mosquitto.pid"}

listener {port} {host}
cafile {ca}
certfile {certificate}
keyfile {key}
crlfile {revoked}
tls_version tlsv1.2
require_certificate true
use_identity_as_username true
use_username_as_clientid true
allow_anonymous false
acl_file {folder / "acl"}

# Retained desired state and sessions survive a restart.
persistence true
persistence_location {folder / "data"}/
autosave_interval 60
persistent_client_expiration 14d

# The service acknowledges in batches, so many messages are under way to it at once.
max_inflight_messages 0
max_queued_messages 10000
max_packet_size {MAX_BYTES + 4096}
message_size_limit {MAX_BYTES}
set_tcp_nodelay true

log_dest stderr
log_type error
log_type warning
log_type notice
# Who was refused is told as debugging only; `broker_watch` reads it and keeps those lines alone.
log_type debug
log_type subscribe
connection_messages true
"""


def find_mosquitto() -> str:
    """The broker's program.

    Raises:
        ConfigError: if it is not installed.
    """
    found = shutil.which("mosquitto") or next((place for place in _PLACES if Path(place).is_file()), None)
    if found is None:
        raise ConfigError(
            "the MQTT broker Mosquitto is not installed", hint="Debian and Ubuntu: sudo apt-get install mosquitto"
        )
    return found


def become(folder: Path) -> NoReturn:
    """Turn this process into the broker: signals and status are its own; a reader of its log ends with it.

    Raises:
        ConfigError: if it is not installed.
    """
    command = _command(folder)
    os.execv(command[0], command)  # noqa: S606 - our own arguments


def start(folder: Path, log: Path | None = None) -> subprocess.Popen[bytes]:
    """Run the broker of a fleet's folder; the caller ends it.

    Raises:
        ConfigError: if it is not installed.
    """
    command = _command(folder)
    with (log or folder / "mosquitto.log").open("ab") as stream:
        return subprocess.Popen(command, stdout=stream, stderr=stream)  # noqa: S603 - our own arguments


def _command(folder: Path) -> list[str]:
    """The script that becomes Mosquitto; see `broker_watch`."""
    rules = (folder / "acl").read_text("utf-8").splitlines()
    allowed = [rule.removeprefix("pattern read ") for rule in rules if rule.startswith("pattern read ")]
    return [sys.executable, str(Path(broker_watch.__file__)), str(folder), find_mosquitto(), *allowed]
