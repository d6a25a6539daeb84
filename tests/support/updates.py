"""Packs, a signed repository and a device's updater, without sockets; and a disk whose power can be cut."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from typing import TYPE_CHECKING, Any

from outrider_cloud.fleet.artifacts.publish import publish
from outrider_cloud.fleet.artifacts.repository import Repository
from outrider_edge.agent.disk import Disk
from outrider_edge.agent.update.slots import Slots
from outrider_edge.agent.update.trust import Catalogue
from outrider_edge.agent.update.updater import Means, Updater
from outrider_edge.agent.update.work import INCOMING, Fits, InThread, Source, Work
from outrider_edge.agent.usage import UsageMeter
from outrider_shared.errors import PackError, UnavailableError
from outrider_shared.fleet.desired import Assignment, Config
from outrider_shared.packs import Architecture, Manifest, Precision, describe_files, read_pack, write_manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from outrider_edge.agent.update.journal import Record

URL = "http://fleet"
TOKENIZER = json.dumps({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}})


def tiny_pack(folder: Path, name: str = "tiny", weights: bytes = b"w" * 150_000, tokenizer: str = TOKENIZER) -> Path:
    """A pack whose model is no graph: whole to every check but the self-test."""
    from outrider_shared.packs import tokenizer_fingerprint

    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(weights)
    (folder / "tokenizer.json").write_text(tokenizer)
    fingerprint = tokenizer_fingerprint(tokenizer.encode())
    shape = Architecture(1, 1, 2, 2, 8)
    write_manifest(folder, Manifest(name, Precision.INT8, shape, (), fingerprint, 2, describe_files(folder), "a test"))
    return folder


def variant(pack: Path, folder: Path, name: str) -> Path:
    """The same draft under another name: another archive."""
    shutil.copytree(pack, folder)
    write_manifest(folder, dataclasses.replace(read_pack(folder).manifest, name=name))
    return folder


class Pool:
    """The artifact server without a socket: what the agent needs of urllib3, ranges included.

    Attributes:
        altered: Path ending -> what the server gives instead of its file.
        asked: (path, offset) of each request.
        broken_after: Bytes of a body after which the connection breaks, once.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.altered: dict[str, Callable[[bytes], Iterator[bytes]]] = {}
        self.asked: list[tuple[str, int]] = []
        self.broken_after: int | None = None
        self.reachable = True

    def request(self, _method: str, url: str, headers: dict[str, str] | None = None, **_: Any) -> Response:
        """One GET."""
        import urllib3

        if not self.reachable:
            raise urllib3.exceptions.NewConnectionError(None, "refused")
        file = self._repository.folder / url.removeprefix(f"{URL}/")
        offset = int((headers or {}).get("Range", "bytes=0-")[6:-1])
        self.asked.append((file.name, offset))
        if not file.is_file():
            return Response(404, {}, iter(()))
        data = file.read_bytes()
        for ending, change in self.altered.items():
            if file.name.endswith(ending):
                return Response(200, {}, change(data))
        if offset >= len(data) > 0:
            return Response(416, {}, iter(()))
        body = self._pieces(data[offset:])
        return Response(206 if offset else 200, {"content-range": f"bytes {offset}-"}, body)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        import urllib3

        stream, sent = io.BytesIO(data), 0
        while piece := stream.read(32 << 10):
            if self.broken_after is not None and sent >= self.broken_after:
                self.broken_after = None
                raise urllib3.exceptions.ProtocolError("connection reset")
            yield piece
            sent += len(piece)


@dataclasses.dataclass
class Response:
    """What urllib3 answers."""

    status: int
    headers: dict[str, str]
    body: Iterator[bytes]

    def stream(self, _size: int) -> Iterator[bytes]:
        """The body."""
        return self.body

    def close(self) -> None:
        """Nothing is open."""


class PathHost:
    """A host that knows which pack it drafts with, and refuses a damaged one as the real one does."""

    answering = False

    async def at_rest(self) -> None:
        """See `Host`."""
        self.rests.append(len(self.loaded))

    def __init__(self) -> None:
        self.usage = UsageMeter()
        self.loaded: list[str] = []
        self.rests: list[int] = []  # how many packs had been loaded when a moment of rest was asked for
        self.on_swap: Callable[[], None] = lambda: None

    async def swap(self, pack: Path) -> None:
        """See `Host`."""
        self.loaded.append(read_pack(pack).manifest.name)
        self.on_swap()

    async def restart_draft(self) -> None:
        """See `Host`."""

    def logs(self, lines: int) -> list[str]:
        """See `Host`."""
        return [f"line {i}" for i in range(lines)]


class Bench:
    """A repository and one device below a folder; `updater` makes the device's program anew, as a start does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = Repository.create(folder / "tuf", folder / "keys")
        self.root = self.repository.first_root()
        self.pool = Pool(self.repository)
        self.base = tiny_pack(folder / "base", "base")
        self.fits = Fits(read_pack(self.base).manifest.tokenizer_fingerprint, "int8")
        self.told: list[Record] = []
        self.host = PathHost()

    def publish(self, name: str, weights: bytes | None = None, **settings: Any) -> Assignment:
        """A new pack; the assignment that brings it."""
        pack = tiny_pack(self.folder / f"pack-{name}", name, weights or name.encode() * 40_000)
        return self.assignment(publish(self.repository, pack, version="1", **settings))

    def assignment(self, path: str, attempt: int = 1) -> Assignment:
        """The assignment of a listed pack."""
        return Assignment(f"roll-{path[-12:]}", attempt, path, self.repository.listed()[path].hashes["sha256"])

    def updater(self, disk: Disk | None = None, config: Config | None = None, **means: Any) -> Updater:
        """The program, started."""
        disk = disk or Disk()
        state = self.folder / "state"
        self.host = PathHost()
        slots = Slots(disk, state / "slots", self.base)
        catalogue = Catalogue(self.folder / "client", URL, self.root, self.pool)
        extra = {"test": lambda folder, golden: read_pack(folder)}
        extra |= {name: means[name] for name in ("test", "wall") if name in means}
        work = Work(state / INCOMING, Source(catalogue, self.pool, URL), slots, self.fits, disk, **extra)
        clocks = {"retry_s": 0.001, "look_s": 0.001, **{k: v for k, v in means.items() if k != "test"}}
        tell = lambda record, _done: self.told.append(record)  # noqa: E731 - one line
        made = Updater(state, InThread(work), self.host, slots, disk, tell, Means(**clocks))
        made.config = config or Config(probation_s=0.0)
        return made

    def states(self) -> list[str]:
        """States as told, repeats left out."""
        found = [str(record.state) for record in self.told if record.rollout]
        return [state for i, state in enumerate(found) if i == 0 or state != found[i - 1]]

    def active(self) -> str:
        """Name of the pack in use; raises if it is not whole."""
        slots = Slots(Disk(), self.folder / "state" / "slots", self.base)
        return read_pack(slots.folder(slots.current())).manifest.name


class PowerCutError(BaseException):
    """The power is gone: no handler of the program runs."""


class CuttableDisk(Disk):
    """Cuts the power at primitive number `at`, in the middle of a write.

    Args:
        at: Which primitive; None counts only.
        lose: What was not synced is lost: contents are cut to half, renames in folders not synced are undone.
    """

    def __init__(self, at: int | None = None, *, lose: bool = True) -> None:
        self.count, self._at, self._lose = 0, at, lose
        self._dirty: dict[Path, None] = {}
        self._renames: list[tuple[Path, Path, bytes | None]] = []

    def _cut(self) -> bool:
        self.count += 1
        return self._at is not None and self.count > self._at

    def _die(self) -> None:
        if self._lose:
            for source, target, before in reversed(self._renames):
                if target.exists():
                    target.replace(source)
                if before is not None:
                    target.write_bytes(before)
            for path in self._dirty:
                if path.is_file():
                    data = path.read_bytes()
                    path.write_bytes(data[: len(data) // 2])
        raise PowerCutError

    def mkdir(self, path: Path) -> None:
        if self._cut():
            self._die()
        super().mkdir(path)

    def put(self, path: Path, data: bytes) -> None:
        if self._cut():
            super().put(path, data[: len(data) // 2])
            self._die()
        super().put(path, data)
        self._dirty[path] = None

    def append(self, path: Path, data: bytes) -> None:
        if self._cut():
            super().append(path, data[: len(data) // 3])
            self._die()
        super().append(path, data)
        self._dirty[path] = None

    def sync(self, path: Path) -> None:
        if self._cut():
            self._die()
        self._dirty.pop(path, None)

    def sync_folder(self, path: Path) -> None:
        if self._cut():
            self._die()
        self._renames = [entry for entry in self._renames if entry[1].parent != path]

    def rename(self, source: Path, target: Path) -> None:
        if self._cut():
            self._die()
        before = target.read_bytes() if target.is_file() else None
        super().rename(source, target)
        self._renames.append((source, target, before))

    def unlink(self, path: Path) -> None:
        if self._cut():
            self._die()
        super().unlink(path)


__all__ = ["Bench", "CuttableDisk", "PackError", "PathHost", "Pool", "PowerCutError", "UnavailableError", "variant"]
