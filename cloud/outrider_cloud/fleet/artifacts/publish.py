"""A pack into the repository: archive, deltas from its predecessors, signed entry."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import zstandard
from tuf.api.metadata import TargetFile

from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.fleet.artifact import SUFFIX, ArtifactInfo, Delta, Golden
from outrider_shared.fleet.codec import check
from outrider_shared.packs import read_pack
from outrider_shared.packs.archive import sha256_of, write_archive

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.fleet.artifacts.repository import Repository

_WORTH = 0.8  # a delta that saves less than a fifth is not kept
_LARGEST_DELTA_BYTES = 512 << 20  # applying one takes both archives in memory


def publish(
    repository: Repository,
    pack: Path,
    *,
    version: str,
    device_class: str | None = None,
    golden: tuple[Golden, ...] = (),
    deltas: int = 2,
) -> str:
    """Verify a pack, put its archive in place and sign it in; returns the target's path.

    Args:
        repository: Where to.
        pack: Folder.
        version: Part of the path, which is never used twice.
        device_class: Whom it is for; the pack's precision by default.
        golden: For the devices' self-test.
        deltas: Make deltas from that many newest packs of the same class.

    Raises:
        PackError: if the pack is damaged.
        ConfigError: if the path is taken, or a signing key is missing.
    """
    manifest = read_pack(pack).manifest
    kind = device_class or str(manifest.precision)
    path = f"draft/{kind}/{manifest.name}-{version}{SUFFIX}"
    listed = repository.listed()
    final = repository.targets / path
    if path in listed or final.exists():
        raise ConfigError(f"{path} was published before", hint="give another --version")
    final.parent.mkdir(parents=True, exist_ok=True)
    write_archive(pack, final)
    target = TargetFile.from_file(path, str(final), ["sha256"])
    digest = target.hashes["sha256"]
    final = final.rename(final.with_name(f"{digest}.{final.name}"))
    before = [other for other in listed if other.startswith(f"draft/{kind}/")][-deltas:] if deltas else []
    made = [_delta(repository, listed[other], final, path, digest) for other in before]
    info = ArtifactInfo(
        manifest.name,
        kind,
        manifest.tokenizer_fingerprint,
        manifest.architecture.vocab_size,
        manifest.source,
        golden,
        tuple(delta for delta in made if delta is not None),
    )
    target.unrecognized_fields["custom"] = info.to_custom()
    repository.add(path, target)
    return path


def file_of(repository: Repository, target: TargetFile) -> Path:
    """Where the archive of a listed target lies: its hash is part of the name."""
    folder, _, name = target.path.rpartition("/")
    return repository.targets / folder / f"{target.hashes['sha256']}.{name}"


def read_golden(file: Path) -> tuple[Golden, ...]:
    """Golden prompts as `outrider edge golden` writes them.

    Raises:
        ConfigError: if the file cannot be read.
    """
    try:
        return tuple(check(Golden, entry) for entry in json.loads(file.read_text("utf-8")))
    except (OSError, ValueError, TypeError, ProtocolError) as error:
        raise ConfigError(f"no golden prompts in {file}: {error}", hint="make it with: outrider edge golden") from error


def _delta(repository: Repository, base: TargetFile, archive: Path, path: str, digest: str) -> Delta | None:
    old = file_of(repository, base)
    if max(base.length, archive.stat().st_size) > _LARGEST_DELTA_BYTES or not old.is_file():
        return None
    known = base.hashes["sha256"]
    assert sha256_of(old) == known, "what was published does not change"
    content = archive.read_bytes()
    prefix = zstandard.ZstdCompressionDict(old.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    window = max(20, (len(content) + base.length).bit_length())
    parameters = zstandard.ZstdCompressionParameters.from_level(9, window_log=min(window, 31), enable_ldm=True)
    packed = zstandard.ZstdCompressor(dict_data=prefix, compression_params=parameters).compress(content)
    if len(packed) > _WORTH * len(content):
        return None
    name = f"{path.rpartition('/')[0]}/{digest[:16]}.from-{known[:16]}.zst"
    (repository.targets / name).write_bytes(packed)
    return Delta(known, name, len(packed))
