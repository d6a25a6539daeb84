"""Reading a pack: nothing of it is used before every byte of it has been checked against its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import stat
from importlib.resources import files
from pathlib import Path

from outrider_shared.errors import PackError
from outrider_shared.packs.fingerprint import tokenizer_fingerprint
from outrider_shared.packs.manifest import FileEntry, Manifest

MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODEL_DATA = "model.onnx.data"
TOKENIZER = "tokenizer.json"
CHAT_TEMPLATE = "chat_template.jinja"
_AGAIN = "export or download the pack again"
_CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Pack:
    """A verified pack: its directory and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.path / MODEL

    @property
    def tokenizer_path(self) -> Path:
        """The Hugging Face fast tokenizer."""
        return self.path / TOKENIZER

    @property
    def chat_template(self) -> str | None:
        """The Jinja text that turns messages into a prompt; None for a model without chat."""
        if CHAT_TEMPLATE not in self.manifest.files:
            return None
        return (self.path / CHAT_TEMPLATE).read_text("utf-8")


def bundled_pack() -> Path:
    """Folder of the draft that ships with the package."""
    return Path(str(files("outrider_shared") / "bundled" / "draft"))


def read_pack(path: str | Path) -> Pack:
    """Verify a pack and return it: all files present, none besides, every size and sha256 as the manifest says.

    Raises:
        PackError: What is wrong with which file, what was expected, and what to do.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    _check_no_stranger(folder, manifest)
    for name, entry in manifest.files.items():
        _check_file(folder / name, entry)
    found = tokenizer_fingerprint((folder / TOKENIZER).read_bytes())
    if found != manifest.tokenizer_fingerprint:
        raise PackError(
            f"{folder / TOKENIZER} has fingerprint {found}, the manifest says {manifest.tokenizer_fingerprint}",
            hint=_AGAIN,
        )
    return Pack(folder, manifest)


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file.

    Raises:
        OSError: The file cannot be read.
    """
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return FileEntry(digest.hexdigest(), size_bytes)


def _read_manifest(folder: Path) -> Manifest:
    if not folder.is_dir():
        raise PackError(f"no pack at {folder}: not a directory", hint="`outrider pack` writes packs")
    try:
        return Manifest.from_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise PackError(f"{folder} is no pack: it has no {MANIFEST}", hint="`outrider pack` writes packs") from error
    except OSError as error:
        raise PackError(f"cannot read {folder / MANIFEST}: {error}") from error
    except PackError as error:
        raise PackError(f"{folder}: {error.message}", hint=error.hint) from error


def _check_no_stranger(folder: Path, manifest: Manifest) -> None:
    # An unlisted model.onnx.data would be weights that nobody has checked; hidden files are litter of file managers.
    for entry in sorted(folder.iterdir()):
        if entry.name not in manifest.files and entry.name != MANIFEST and not entry.name.startswith("."):
            raise PackError(f"{entry} is not listed in the manifest", hint="remove it, or " + _AGAIN)


def _check_file(path: Path, expected: FileEntry) -> None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise PackError(f"{path} is not a regular file", hint=_AGAIN)
        if status.st_size != expected.size_bytes:
            raise PackError(f"{path} has {status.st_size} bytes, the manifest says {expected.size_bytes}", hint=_AGAIN)
        found = file_entry(path)
    except FileNotFoundError as error:
        raise PackError(f"{path} is missing; the manifest lists it", hint=_AGAIN) from error
    except OSError as error:
        raise PackError(f"cannot read {path}: {error}") from error
    if found != expected:
        raise PackError(f"{path} was altered: sha256 {found.sha256}, the manifest says {expected.sha256}", hint=_AGAIN)
