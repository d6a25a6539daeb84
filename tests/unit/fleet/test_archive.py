"""A pack as one file: the same bytes for the same pack, and nothing but plain files comes out."""

from __future__ import annotations

import io
import tarfile

import pytest

from outrider_shared.errors import PackError
from outrider_shared.packs.archive import members, sha256_of, write_archive
from support.updates import tiny_pack


def test_the_same_pack_gives_the_same_bytes_and_comes_back(tmp_path):
    one, two = tiny_pack(tmp_path / "one"), tiny_pack(tmp_path / "two")
    for path in two.iterdir():
        path.touch()
    for pack in (one, two):
        write_archive(pack, tmp_path / f"{pack.name}.tar")
    assert sha256_of(tmp_path / "one.tar") == sha256_of(tmp_path / "two.tar")
    found = {name: b"".join(pieces) for name, pieces in members(tmp_path / "one.tar")}
    assert found == {path.name: path.read_bytes() for path in one.iterdir()}


def entry(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, "/etc/passwd"
    return made


@pytest.mark.parametrize(
    "entries",
    [
        [entry("../evil")], [entry("/etc/evil")], [entry("a/b")], [entry(".hidden")], [entry("x", tarfile.SYMTYPE)],
        [entry("x", tarfile.LNKTYPE)], [entry("x", tarfile.DIRTYPE)], [entry("x", tarfile.FIFOTYPE)],
        [entry("x"), entry("x")],
    ],
)  # fmt: skip
def test_an_archive_that_could_write_elsewhere_is_refused(tmp_path, entries):
    file = tmp_path / "evil.tar"
    with tarfile.open(file, "w") as tar:
        for one in entries:
            tar.addfile(one, io.BytesIO())
    with pytest.raises(PackError):
        [b"".join(pieces) for _, pieces in members(file)]


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"x" * 2000)
    with pytest.raises(PackError):
        list(members(tmp_path / "x.tar"))
