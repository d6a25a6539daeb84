"""Every topic, on one page. `{t}` is the tenant, `{d}` the device.

A device's name is its certificate's CN, its MQTT user, its client id and its level here.

| topic, all below outrider/v1/{t} | from    | QoS | retained | carries          | why so                              |
|----------------------------------|---------|-----|----------|------------------|-------------------------------------|
| svc/state                        | service | 1   | yes      | `ServiceState`   | Will of the service                 |
| d/{d}/presence                   | device  | 1   | yes      | `Presence`       | Will of the device, birth, bye  |
| d/{d}/info                       | device  | 1   | yes      | `Info`           | a service that starts late sees all|
| d/{d}/tele                       | device  | 1   | no       | `Telemetry`      | lost ones are counted by `seq`      |
| d/{d}/reported                   | device  | 1   | yes      | `Reported`       | what is, beside `desired`      |
| d/{d}/update/status              | device  | 1   | no       | `UpdateStatus`   | through an outbox on the disk       |
| d/{d}/cmd/res                    | device  | 1   | no       | `CommandResult`  | correlation data of the request     |
| d/{d}/desired                    | service | 1   | yes      | signed `Desired` | ONE document and never a queue:     |
|                                  |         |     |          |                  | brokers drop the newest of a queue  |
| d/{d}/cmd/req                    | service | 1   | no       | signed `Command` | with message expiry                 |

The functions `device_may_publish` and `device_may_read` are the access rules; Mosquitto's ACL file is written from the
same table, and a test holds both together.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.fleet.desired import Desired
from outrider_shared.fleet.messages import (
    Command,
    CommandResult,
    Info,
    Presence,
    Reported,
    ServiceState,
    Telemetry,
    UpdateStatus,
)
from outrider_shared.ids import DeviceId, parse_device_id

ROOT = "outrider/v1"
_TENANT = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class Sender(enum.StrEnum):
    """Who writes a topic."""

    DEVICE = "device"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class Topic:
    """One row of the table.

    Attributes:
        leaf: The levels behind the device's, or behind the tenant's for a service topic.
        kind: What it carries; `Desired` and `Command` are wrapped by `signed`.
    """

    leaf: str
    sender: Sender
    kind: type
    qos: int = 1
    retain: bool = False

    def of(self, tenant: str, device: DeviceId | str) -> str:
        """The full topic of one device."""
        return f"{ROOT}/{tenant}/d/{device}/{self.leaf}"


PRESENCE = Topic("presence", Sender.DEVICE, Presence, retain=True)
INFO = Topic("info", Sender.DEVICE, Info, retain=True)
TELEMETRY = Topic("tele", Sender.DEVICE, Telemetry)
REPORTED = Topic("reported", Sender.DEVICE, Reported, retain=True)
UPDATE_STATUS = Topic("update/status", Sender.DEVICE, UpdateStatus)
COMMAND_RESULT = Topic("cmd/res", Sender.DEVICE, CommandResult)
DESIRED = Topic("desired", Sender.SERVICE, Desired, retain=True)
COMMAND = Topic("cmd/req", Sender.SERVICE, Command)
SERVICE_STATE = Topic("svc/state", Sender.SERVICE, ServiceState, retain=True)

DEVICE_TOPICS = (PRESENCE, INFO, TELEMETRY, REPORTED, UPDATE_STATUS, COMMAND_RESULT, DESIRED, COMMAND)
_BY_LEAF = {topic.leaf: topic for topic in DEVICE_TOPICS}


def service_state(tenant: str) -> str:
    """Where the service says whether it is here."""
    return f"{ROOT}/{tenant}/{SERVICE_STATE.leaf}"


def all_devices(topic: Topic, tenant: str) -> str:
    """The filter that takes this topic of every device."""
    return topic.of(tenant, "+")


def ingest_filters(tenant: str) -> tuple[str, ...]:
    """What the service subscribes to."""
    return tuple(all_devices(topic, tenant) for topic in DEVICE_TOPICS if topic.sender is Sender.DEVICE)


def check_tenant(tenant: str) -> str:
    """A tenant's name is one level of a topic.

    Raises:
        ConfigError: if it is not 1 to 32 characters of a-z, 0-9 and '-'.
    """
    if not _TENANT.fullmatch(tenant):
        raise ConfigError(f"tenant {tenant[:80]!r} is not 1 to 32 characters of a-z 0-9 -")
    return tenant


def parse(topic: str, tenant: str) -> tuple[DeviceId, Topic]:
    """Which device and which row of the table a topic is.

    Raises:
        ProtocolError: if it is none of this tenant's.
    """
    prefix = f"{ROOT}/{tenant}/d/"
    name, _, leaf = topic.removeprefix(prefix).partition("/")
    if not topic.startswith(prefix) or leaf not in _BY_LEAF:
        raise ProtocolError(f"{topic[:200]!r} is no topic of tenant {tenant!r}")
    return parse_device_id(name), _BY_LEAF[leaf]


def device_may_publish(topic: str, tenant: str, device: str) -> bool:
    """Whether the broker takes a message on `topic` from that device."""
    return any(topic == row.of(tenant, device) for row in DEVICE_TOPICS if row.sender is Sender.DEVICE)


def device_may_read(topic: str, tenant: str, device: str) -> bool:
    """Whether the broker delivers a message on `topic` to that device."""
    mine = any(topic == row.of(tenant, device) for row in DEVICE_TOPICS if row.sender is Sender.SERVICE)
    return mine or topic == service_state(tenant)


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT filter takes a topic ('+' one level, '#' the rest)."""
    wanted, found = pattern.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(found) or level not in {"+", found[i]}:
            return False
    return len(wanted) == len(found)
