"""A fleet's folder: every key, certificate and setting in one place, made by `init` and read by all fleet commands.

    fleet.toml                 tenant, addresses
    ca/ca.pem, ca.key, crl.pem the authority (key: keep offline where the fleet is real), and whom it shut out
    server/                    server.pem and key (broker and artifact server), svc-controller.pem and key
    keys/                      Ed25519 keys: desired (signs state and commands), and of the TUF roles
    broker/                    mosquitto.conf, acl, data/
    tuf/metadata, tuf/targets  what the artifact server serves
    devices/NAME/              what is copied to a device: agent.toml, its certificate and key, what it trusts
    revoked/NAME-SERIAL/       that of a device which was shut out

Private keys are readable by their owner only.
"""

from __future__ import annotations

import json
import stat
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from outrider_cloud.fleet import broker, pki
from outrider_cloud.fleet.artifacts.repository import Repository
from outrider_cloud.fleet.plane import CONTROLLER
from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.fleet.mqtt import MqttConfig
from outrider_shared.fleet.signed import Signer
from outrider_shared.fleet.topics import check_tenant
from outrider_shared.ids import DeviceId, parse_device_id

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ADMIN_TOKEN = "admin.token"  # noqa: S105 - the name of a file
SETTINGS = "fleet.toml"
_BROKER_HOST_ALL = "0.0.0.0"  # noqa: S104 - compared with, not listened on


@dataclass(frozen=True, slots=True)
class Settings:
    """What `init` was told.

    Attributes:
        tenant: Level of the topics.
        host: Under which devices reach broker and artifact server.
        listen: Address that both bind.
        mqtt_port, https_port: Their ports.
    """

    tenant: str = "main"
    host: str = "localhost"
    listen: str = "127.0.0.1"
    mqtt_port: int = 8883
    https_port: int = 8444

    def __post_init__(self) -> None:
        check_tenant(self.tenant)
        for port in (self.mqtt_port, self.https_port):
            if not 1 <= port <= 65535:
                raise ConfigError(f"port {port} is not from 1 to 65535")


class FleetHome:
    """The folder of a fleet; make one with `init`, open one with the constructor.

    Raises:
        ConfigError: if the folder is no fleet's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        try:
            table = tomllib.loads((self.folder / SETTINGS).read_text("utf-8"))
            self.settings = Settings(**table)
        except (OSError, tomllib.TOMLDecodeError, TypeError) as error:
            raise ConfigError(
                f"{folder} is no fleet's folder: {error}", hint=f"make one: outrider fleet init {folder}"
            ) from error

    @classmethod
    def init(cls, folder: Path, settings: Settings) -> FleetHome:
        """Make a fleet: authority, certificates, keys, broker configuration, an empty signed repository.

        Raises:
            ConfigError: if there is something in the folder, or it cannot be written.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty", hint="keys are never overwritten; take another folder")
        try:
            for part in ("ca", "server", "keys", "broker/data", "tuf", "devices"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            _write_certificates(folder, settings)
            key = Ed25519PrivateKey.generate()
            _secret(folder / "keys" / "desired.key", _pem(key))
            Repository.create(folder / "tuf", folder / "keys")
            (folder / SETTINGS).write_text(_toml(settings), "utf-8")
            home = cls(folder)
            home.write_broker()
        except OSError as error:
            raise ConfigError(f"cannot write {folder}: {error}") from error
        return home

    @property
    def signer(self) -> Signer:
        """Of desired states and commands.

        Raises:
            ConfigError: if its key is not here, or is none.
        """
        file = self.folder / "keys" / "desired.key"
        try:
            key = serialization.load_pem_private_key(file.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the key that signs desired states cannot be read: {file}: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"{file} is no Ed25519 key", hint="`outrider fleet init` makes one")
        return Signer(key)

    @property
    def bare_keys(self) -> list[Path]:
        """Keys in this folder that everybody on this machine may read."""
        return [file for file in sorted(self.folder.glob("*/*.key")) if file.stat().st_mode & stat.S_IROTH]

    @property
    def repository(self) -> Repository:
        """The signed repository of packs."""
        return Repository(self.folder / "tuf", self.folder / "keys")

    @property
    def authority(self) -> pki.Pair:
        """Who signs certificates.

        Raises:
            ConfigError: if its key is not here.
        """
        key = self.folder / "ca" / "ca.key"
        try:
            return pki.Pair(self.ca.read_bytes(), key.read_bytes())
        except OSError as error:
            raise ConfigError(
                f"the authority's key cannot be read: {key} ({error.strerror})", hint="do this where the key is kept"
            ) from error

    @property
    def server_certificate(self) -> tuple[Path, Path]:
        """PEM files of broker and artifact server."""
        return self.folder / "server" / "server.pem", self.folder / "server" / "server.key"

    @property
    def ca(self) -> Path:
        """PEM of the authority."""
        return self.folder / "ca" / "ca.pem"

    @property
    def url(self) -> str:
        """Where devices find the artifacts."""
        return f"https://{self.settings.host}:{self.settings.https_port}/artifacts"

    def devices(self) -> list[str]:
        """Names of the devices enrolled here."""
        return sorted(path.name for path in (self.folder / "devices").iterdir() if (path / "agent.toml").is_file())

    def device_folder(self, device: str) -> Path:
        """What is copied to that device."""
        return self.folder / "devices" / device

    def mqtt(self, client: str = CONTROLLER) -> MqttConfig:
        """How a service connects to the broker."""
        server = self.folder / "server"
        return MqttConfig(
            self.settings.host, self.settings.mqtt_port, self.ca, server / f"{client}.pem", server / f"{client}.key"
        )

    @property
    def revocations(self) -> Path:
        """PEM of whom the authority shut out."""
        return self.folder / "ca" / "crl.pem"

    def write_broker(self) -> Path:
        """Write Mosquitto's files; returns their folder."""
        folder = self.folder / "broker"
        if not self.revocations.exists():
            self.revocations.write_bytes(pki.new_revocations(self.authority))
        certificate, key = self.server_certificate
        text = broker.configuration(
            folder,
            host=self.settings.listen,
            port=self.settings.mqtt_port,
            ca=self.ca,
            certificate=certificate,
            key=key,
            revoked=self.revocations,
        )
        (folder / "mosquitto.conf").write_text(text, "utf-8")
        acl = folder / "acl"
        acl.write_text(broker.access_rules(self.settings.tenant, (CONTROLLER,)), "utf-8")
        acl.chmod(0o600)
        return folder

    def enrol(self, device: str, *, device_class: str = "int8", labels: dict[str, str] | None = None) -> Path:
        """Make the folder of one device.

        Raises:
            ConfigError: if the name is malformed, or the device exists.
        """
        name = _device(device)
        folder = self.device_folder(name)
        if folder.exists():
            raise ConfigError(f"device {device!r} exists in {folder}", hint="take another name, or use that folder")
        folder.mkdir(parents=True)
        pair = pki.new_client(self.authority, name)
        (folder / "device.pem").write_bytes(pair.certificate)
        _secret(folder / "device.key", pair.key)
        (folder / "ca.pem").write_bytes(self.ca.read_bytes())
        (folder / "root.json").write_bytes(self.repository.first_root())
        public = self.signer.public_key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (folder / "desired.pem").write_bytes(public)
        (folder / "agent.toml").write_text(self._agent_toml(name, device_class, labels or {}), "utf-8")
        return folder

    def revoke(self, device: str) -> None:
        """Put a device's certificate on the revocation list and its folder aside; the broker has to be told.

        Raises:
            ConfigError: if there is no such device here, or the authority's key is not.
        """
        folder = self.device_folder(_device(device))
        try:
            certificate = (folder / "device.pem").read_bytes()
        except OSError as error:
            raise ConfigError(
                f"no device {device!r} was enrolled here: {folder} ({error.strerror})", hint=f"see {folder.parent}"
            ) from error
        before = self.revocations.read_bytes() if self.revocations.exists() else b""
        made = self.revocations.with_suffix(".new")
        made.write_bytes(pki.new_revocations(self.authority, before, [certificate]))
        made.replace(self.revocations)
        aside = self.folder / "revoked" / f"{device}-{pki.serial(certificate)}"
        aside.parent.mkdir(exist_ok=True)
        folder.replace(aside)

    def _agent_toml(self, device: str, device_class: str, labels: dict[str, str]) -> str:
        lines = [
            "# Written by `outrider fleet enrol`. Paths are beside this file; state goes where `state` says.",
            f"device = {json.dumps(device)}",
            f"tenant = {json.dumps(self.settings.tenant)}",
            f"broker = {json.dumps(f'{self.settings.host}:{self.settings.mqtt_port}')}",
            f"artifacts = {json.dumps(self.url)}",
            f"device_class = {json.dumps(device_class)}",
            'state = "state"',
            "",
            "[labels]",
            *(f"{json.dumps(key)} = {json.dumps(value)}" for key, value in labels.items()),
        ]
        return "\n".join(lines) + "\n"


def _write_certificates(folder: Path, settings: Settings) -> None:
    authority = pki.new_authority(f"Outrider fleet {settings.tenant}")
    (folder / "ca" / "ca.pem").write_bytes(authority.certificate)
    _secret(folder / "ca" / "ca.key", authority.key)
    listen = [] if settings.listen in {_BROKER_HOST_ALL, "::"} else [settings.listen]
    hosts = _unique([settings.host, "localhost", "127.0.0.1", *listen])
    for name, pair in (
        ("server", pki.new_server(authority, f"{CONTROLLER}-server", hosts)),
        (CONTROLLER, pki.new_client(authority, CONTROLLER)),
    ):
        (folder / "server" / f"{name}.pem").write_bytes(pair.certificate)
        _secret(folder / "server" / f"{name}.key", pair.key)


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _toml(settings: Settings) -> str:
    names = ("tenant", "host", "listen", "mqtt_port", "https_port")
    return "".join(f"{name} = {json.dumps(getattr(settings, name))}\n" for name in names)


def _pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _device(name: str) -> DeviceId:
    """A name that somebody typed."""
    try:
        return parse_device_id(name)
    except ProtocolError as error:
        raise ConfigError(error.message, hint=error.hint) from None


def _secret(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)
