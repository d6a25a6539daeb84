"""The TUF repository (specification 1.0): who may vouch for which file, in which version, until when.

| role      | keys (threshold) | says                                     | valid    | where the key belongs    |
|-----------|------------------|------------------------------------------|----------|--------------------------|
| root      | 3 (2)            | the keys of all roles                    | 365 days | three people, offline    |
| targets   | 1 (1)            | only that `models` vouches for `draft/*` | 365 days | offline                  |
| models    | 1 (1)            | the packs: length, hash, whom they fit   | 90 days  | who publishes            |
| snapshot  | 1 (1)            | which versions belong together           | 30 days  | the service              |
| timestamp | 1 (1)            | that this is the newest state            | 7 days   | the service, renewed     |

`init` writes all keys into one folder: move those of root and targets away where the fleet is real; publishing needs
only the lower three. Versioned file names (consistent snapshots), so a device never sees half of a publication: the
timestamp, written last and by rename, is what makes the rest visible.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from cryptography.hazmat.primitives import serialization
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

MODELS = "models"
MODELS_PATHS = ("draft/*/*",)
ROOT_KEYS, ROOT_THRESHOLD = 3, 2
DAYS: Mapping[str, int] = {"root": 365, "targets": 365, MODELS: 90, "snapshot": 30, "timestamp": 7}
Clock = Callable[[], dt.datetime]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC).replace(microsecond=0)


class Repository:
    """Reads and writes the metadata in `folder`/metadata and the files in `folder`/targets.

    Args:
        folder: Of the repository.
        keys: Folder of the private keys, as far as they are here.
        clock: Expiry counts from here.
    """

    def __init__(self, folder: Path, keys: Path, clock: Clock = _now) -> None:
        self.folder = folder
        self.metadata, self.targets = folder / "metadata", folder / "targets"
        self._keys, self._clock = keys, clock

    @classmethod
    def create(cls, folder: Path, keys: Path, clock: Clock = _now) -> Repository:
        """An empty repository with fresh keys."""
        made = cls(folder, keys, clock)
        for path in (made.metadata, made.targets, keys):
            path.mkdir(parents=True, exist_ok=True)
        names = [f"root-{i + 1}" for i in range(ROOT_KEYS)]
        for name in (*names, "targets", MODELS, "snapshot", "timestamp"):
            made.new_key(name)
        made._write_root(names)
        made._write_targets()
        made._sign_and_write(MODELS, Metadata(Targets(expires=made._expiry(MODELS))), [MODELS])
        made._publish_state()
        return made

    def new_key(self, name: str) -> CryptoSigner:
        """Make a key file."""
        signer = CryptoSigner.generate_ed25519()
        path = self._keys / f"{name}.key"
        path.touch(mode=0o600)
        path.write_bytes(signer.private_bytes)
        return signer

    def signer(self, name: str) -> CryptoSigner:
        """The key of that name.

        Raises:
            ConfigError: if it is not here.
        """
        try:
            key = serialization.load_pem_private_key((self._keys / f"{name}.key").read_bytes(), None)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the signing key {name!r} cannot be read: {error}") from error
        return CryptoSigner(key)

    def first_root(self) -> bytes:
        """What a new device is given to trust: the newest root."""
        return self._file("root", self.load("root").signed.version).read_bytes()

    def load(self, role: str) -> Metadata[Any]:
        """The newest metadata of a role.

        Raises:
            ConfigError: if there is none.
        """
        if role == "timestamp":
            path = self.metadata / "timestamp.json"
        else:
            found = [int(name.name.split(".")[0]) for name in self.metadata.glob(f"*.{role}.json")]
            path = self._file(role, max(found, default=0))
        try:
            return Metadata.from_file(str(path))
        except Exception as error:
            # python-tuf raises storage and deserialisation errors of several families.
            raise ConfigError(f"the repository at {self.folder} has no readable {role}: {error}") from error

    def listed(self) -> dict[str, TargetFile]:
        """The packs that devices may install, by path."""
        return dict(cast("Targets", self.load(MODELS).signed).targets)

    def add(self, path: str, target: TargetFile) -> None:
        """List a pack; its file must be in place already."""
        models = self.load(MODELS)
        models.signed.targets[path] = target
        self._renew(MODELS, models)

    def withdraw(self, path: str) -> None:
        """Ban a pack: devices refuse it from their next look on.

        Raises:
            ConfigError: if it is not listed.
        """
        models = self.load(MODELS)
        if path not in models.signed.targets:
            raise ConfigError(f"{path!r} is not listed", hint="outrider fleet model list")
        del models.signed.targets[path]
        self._renew(MODELS, models)

    def refresh(self) -> None:
        """Renew snapshot and timestamp, so that devices know that nothing was held back. Run daily."""
        self._publish_state()

    def replace_key(self, role: str) -> None:
        """Give a top-level role or `models` a new key and distrust the old one. Needs the keys above it."""
        if role == MODELS:
            self.new_key(MODELS)
            self._write_targets()
            self._renew(MODELS, self.load(MODELS))
            return
        root = self.load("root")
        old = list(root.signed.roles[role].keyids)
        root.signed.add_key(self.new_key(role).public_key, role)
        for key_id in old:
            root.signed.revoke_key(key_id, role)
        root.signed.version += 1
        root.signed.expires = self._expiry("root")
        self._sign_and_write("root", root, [f"root-{i + 1}" for i in range(ROOT_KEYS)])
        if role == "targets":
            self._write_targets()
        self._publish_state()

    def _renew(self, role: str, metadata: Metadata[Any]) -> None:
        metadata.signed.version += 1
        metadata.signed.expires = self._expiry(role)
        self._sign_and_write(role, metadata, [role])
        self._publish_state()

    def _write_root(self, names: list[str]) -> None:
        roles = {role: Role([], 1) for role in TOP_LEVEL_ROLE_NAMES}
        roles["root"] = Role([], ROOT_THRESHOLD)
        root = Root(expires=self._expiry("root"), roles=roles, consistent_snapshot=True)
        for name in names:
            root.add_key(self.signer(name).public_key, "root")
        for role in ("targets", "snapshot", "timestamp"):
            root.add_key(self.signer(role).public_key, role)
        self._sign_and_write("root", Metadata(root), names)

    def _write_targets(self) -> None:
        key = self.signer(MODELS).public_key
        role = DelegatedRole(MODELS, [key.keyid], 1, terminating=True, paths=list(MODELS_PATHS))
        version = max((int(p.name.split(".")[0]) for p in self.metadata.glob("*.targets.json")), default=0) + 1
        signed = Targets(
            version, expires=self._expiry("targets"), delegations=Delegations({key.keyid: key}, {MODELS: role})
        )
        self._sign_and_write("targets", Metadata(signed), ["targets"])

    def _publish_state(self) -> None:
        """Snapshot and timestamp over what is there now."""
        known = sorted(self.metadata.glob("*.snapshot.json"))
        meta = {f"{role}.json": MetaFile(self.load(role).signed.version) for role in ("targets", MODELS)}
        version = self.load("snapshot").signed.version + 1 if known else 1
        snapshot = Metadata(Snapshot(version, expires=self._expiry("snapshot"), meta=meta))
        self._sign_and_write("snapshot", snapshot, ["snapshot"])
        stamped = self.metadata / "timestamp.json"
        stamp = self.load("timestamp").signed.version + 1 if stamped.exists() else 1
        timestamp = Metadata(Timestamp(stamp, expires=self._expiry("timestamp"), snapshot_meta=MetaFile(version)))
        self._sign_and_write("timestamp", timestamp, ["timestamp"])

    def _sign_and_write(self, role: str, metadata: Metadata[Any], keys: list[str]) -> None:
        metadata.signatures.clear()
        for name in keys:
            metadata.sign(self.signer(name), append=True)
        final = self.metadata / "timestamp.json" if role == "timestamp" else self._file(role, metadata.signed.version)
        draft = final.with_suffix(".new")
        metadata.to_file(str(draft))
        os.replace(draft, final)  # noqa: PTH105 - rename over the old one, in one step

    def _file(self, role: str, version: int) -> Path:
        return self.metadata / f"{version}.{role}.json"

    def _expiry(self, role: str) -> dt.datetime:
        return self._clock() + dt.timedelta(days=DAYS[role])
