"""Two places for packs, and a pointer to the one in use.

    slots/a, slots/b     a pack each; a slot is filled beside (`a.new`) and renamed, so a slot that is there is whole
    slots/current        JSON: which slot, of which target; absent: the pack that came with the package

| who                 | owns                              | frees                                      |
|---------------------|-----------------------------------|--------------------------------------------|
| pointer             | the slot in use                   | never: the other one is always the one that is filled |
| record, switched    | `previous`, the proven one        | when the new one is committed              |
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

from outrider_shared.errors import PackError, StorageError
from outrider_shared.fleet.messages import PackRef
from outrider_shared.packs import Pack, read_pack
from outrider_shared.packs.archive import members

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_edge.agent.disk import Disk

BUNDLED = "bundled"
NAMES = ("a", "b")
_LABEL = ".archive"  # beside the pack's files: hidden, so a pack's reader takes no notice


@dataclasses.dataclass(frozen=True, slots=True)
class Label:
    """What is in a slot."""

    target: str
    sha256: str


class Slots:
    """The folder `path`.

    Args:
        bundled: The pack that came with the package: what is in use when nothing else can be.
    """

    def __init__(self, disk: Disk, path: Path, bundled: Path) -> None:
        self._disk, self._path, self._bundled = disk, path, bundled
        disk.mkdir(path)

    def current(self) -> str:
        """The slot in use; empty for the bundled pack."""
        found = (self._disk.read(self._path / "current") or b"").decode("utf-8", "replace").strip()
        return found if found in NAMES else ""

    def other(self) -> str:
        """The slot that may be filled."""
        return "b" if self.current() == "a" else "a"

    def folder(self, slot: str) -> Path:
        """Where that pack is."""
        return self._path / slot if slot else self._bundled

    def label(self, slot: str) -> Label | None:
        """What is in a slot; None if nothing whole is."""
        try:
            fields = json.loads(self._disk.read(self._path / slot / _LABEL) or b"null")
            return Label(**fields) if fields else None
        except (ValueError, TypeError):
            return None

    def reference(self, slot: str) -> PackRef:
        """How that pack is told to the service."""
        label = self.label(slot) if slot else None
        return PackRef(BUNDLED) if label is None else PackRef(label.target, label.sha256)

    def holding(self, sha256: str) -> str | None:
        """The slot whose pack came from that archive, if it is whole."""
        for slot in NAMES:
            label = self.label(slot)
            if label is not None and label.sha256 == sha256 and self.whole(slot):
                return slot
        return None

    def whole(self, slot: str) -> bool:
        """Whether the pack there can be read and every byte is as its manifest says."""
        try:
            read_pack(self.folder(slot))
        except (PackError, StorageError):
            return False
        return True

    def fill(self, slot: str, archive: Path, label: Label) -> Pack:
        """Unpack an archive into a slot that is not in use; the pack, verified.

        Raises:
            PackError: if the archive or the pack is damaged.
            StorageError: if there is no room.
        """
        assert slot != self.current(), "the slot in use is never written"
        draft = self._path / f"{slot}.new"
        self._disk.remove_tree(draft)
        self._disk.mkdir(draft)
        for name, pieces in members(archive):
            for piece in pieces:
                self._disk.append(draft / name, piece)
            self._disk.sync(draft / name)
        pack = read_pack(draft)
        self._disk.put(draft / _LABEL, json.dumps(dataclasses.asdict(label)).encode())
        self._disk.sync(draft / _LABEL)
        self._disk.sync_folder(draft)
        self._disk.remove_tree(self._path / slot)
        self._disk.rename(draft, self._path / slot)
        self._disk.sync_folder(self._path)
        return dataclasses.replace(pack, path=self._path / slot)

    def use(self, slot: str) -> None:
        """Point to a slot, or with an empty name to the bundled pack."""
        self._disk.replace(self._path / "current", slot.encode())
