"""Errors of the file system become sentences, whoever reports them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outrider_shared.errors import ConfigError, StorageError
from outrider_shared.files import check_writable, storage_errors

FULL = Path("/dev/full")  # every write says that the disk is full


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_is_told_with_the_path():
    told = pytest.raises(StorageError, match=r"^weights: No space left on device .is the disk full")
    with told, storage_errors(Path("weights")), FULL.open("wb") as file:
        file.write(b"x")


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
def test_a_full_disk_that_torch_reports_as_its_own_is_told_so():
    torch = pytest.importorskip("torch")
    told = pytest.raises(StorageError, match="No space left on device")
    with told, storage_errors(FULL), FULL.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


def test_libraries_in_rust_tell_the_systems_number_alone():
    with pytest.raises(StorageError, match="here: No space left on device"), storage_errors(Path("here")):
        raise RuntimeError("Error while serializing: I/O error: whatever (os error 28)")


@pytest.mark.parametrize("error", [ConfigError("ours"), RuntimeError("a defect"), ValueError("os error 28")])
def test_other_errors_pass_as_they_are(error: Exception):
    with pytest.raises(type(error)) as found, storage_errors(Path("here")):
        raise error
    assert found.value is error


def test_asking_whether_a_file_can_be_written_leaves_no_trace(tmp_path: Path):
    check_writable(tmp_path / "deep" / "new.json")
    assert not list((tmp_path / "deep").iterdir())
    kept = tmp_path / "kept.json"
    kept.write_text("{}")
    check_writable(kept)
    assert kept.read_text() == "{}"
    with pytest.raises(StorageError, match=r"kept\.json/in: File exists"):
        check_writable(kept / "in")
