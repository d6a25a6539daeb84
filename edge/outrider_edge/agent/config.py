"""Who this device is: `agent.toml`, as `outrider fleet enrol` writes it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from outrider_shared.errors import ConfigError, OutriderError
from outrider_shared.fleet.mqtt import MqttConfig
from outrider_shared.fleet.signed import Trust
from outrider_shared.fleet.topics import check_tenant
from outrider_shared.ids import DeviceId, parse_device_id

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_FIELDS = {"device", "tenant", "broker", "artifacts", "device_class", "state", "labels"}


@dataclass(frozen=True, slots=True)
class AgentConfig:
    """One device.

    Attributes:
        folder: Where the files that it trusts are.
        device, tenant: Its name and its topics.
        broker: HOST:PORT.
        artifacts: URL with /metadata and /targets below it.
        device_class: Which packs it takes.
        state: Folder of slots, journal and outbox; must survive restarts.
        labels: For groups.
    """

    folder: Path
    device: DeviceId
    tenant: str
    broker: str
    artifacts: str
    device_class: str
    state: Path
    labels: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> AgentConfig:
        """Read `agent.toml`, or the folder that holds it.

        Raises:
            ConfigError: if it is missing or does not say everything.
        """
        file = path / "agent.toml" if path.is_dir() else path
        try:
            table = tomllib.loads(file.read_text("utf-8"))
            if unknown := sorted(table.keys() - _FIELDS):
                raise ConfigError(f"{file}: unknown keys {unknown}")
            device, tenant = parse_device_id(table["device"]), check_tenant(table["tenant"])
            folder = file.resolve().parent
            return cls(
                folder, device, tenant, str(table["broker"]), str(table["artifacts"]).rstrip("/"),
                str(table["device_class"]), folder / table.get("state", "state"), table.get("labels", {}),
            )  # fmt: skip
        except KeyError as error:
            raise ConfigError(f"{file} does not say {error}", hint="write it with: outrider fleet enrol") from None
        except (OSError, ValueError, TypeError, OutriderError) as error:
            raise ConfigError(f"{file} is no agent file: {error}", hint="`outrider fleet enrol` writes it") from error

    @property
    def mqtt(self) -> MqttConfig:
        """How to reach the broker."""
        host, _, port = self.broker.rpartition(":")
        if not host or not port.isdecimal():
            raise ConfigError(f"broker {self.broker!r} is not HOST:PORT")
        return MqttConfig(host, int(port), self.ca, self.folder / "device.pem", self.folder / "device.key")

    @property
    def ca(self) -> Path:
        """PEM of who signs the servers' certificates."""
        return self.folder / "ca.pem"

    @property
    def root(self) -> bytes:
        """The TUF root that this device was given."""
        return self._read("root.json")

    @property
    def trust(self) -> Trust:
        """Who signs desired state and commands: all keys in desired*.pem."""
        keys = []
        for file in sorted(self.folder.glob("desired*.pem")):
            key = load_pem_public_key(file.read_bytes())
            if not isinstance(key, Ed25519PublicKey):
                raise ConfigError(f"{file} is no Ed25519 public key")
            keys.append(key)
        if not keys:
            raise ConfigError(f"{self.folder} has no desired.pem", hint="copy the device's whole folder")
        return Trust(keys)

    def _read(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise ConfigError(f"{self.folder / name} cannot be read: {error}") from error
