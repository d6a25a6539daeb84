"""A pack is read only when every byte of it is what its manifest says."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from outrider_shared.errors import PackError
from outrider_shared.packs import describe_files, read_pack, write_manifest
from unit.pack.tiny import hollow_manifest


def test_a_whole_pack_is_read(hollow: Path):
    pack = read_pack(str(hollow))
    assert pack.manifest.name == "hollow"
    assert pack.model_path.name == "model.onnx"
    assert pack.tokenizer_path.is_file()
    assert pack.chat_template == "{{ messages }}"


def test_a_pack_without_chat_has_no_template(hollow: Path):
    (hollow / "chat_template.jinja").unlink()
    write_manifest(hollow, hollow_manifest(hollow))
    assert read_pack(hollow).chat_template is None


def test_a_path_without_a_pack_is_refused(tmp_path: Path):
    with pytest.raises(PackError, match="not a directory"):
        read_pack(tmp_path / "none")
    with pytest.raises(PackError, match=r"no manifest\.json"):
        read_pack(tmp_path)


def test_a_manifest_that_is_a_directory_is_refused(hollow: Path):
    (hollow / "manifest.json").unlink()
    (hollow / "manifest.json").mkdir()
    with pytest.raises(PackError, match="cannot read"):
        read_pack(hollow)


def test_a_broken_manifest_names_the_pack(hollow: Path):
    (hollow / "manifest.json").write_text("{")
    with pytest.raises(PackError, match=f"{hollow}: manifest.json is not JSON"):
        read_pack(hollow)


def test_a_truncated_file_is_told_by_its_size(hollow: Path):
    with (hollow / "model.onnx").open("r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(PackError, match=r"model\.onnx has 1000 bytes, the manifest says 2048"):
        read_pack(hollow)


def test_one_flipped_bit_is_told_by_its_digest(hollow: Path):
    content = bytearray((hollow / "model.onnx").read_bytes())
    content[700] ^= 1
    (hollow / "model.onnx").write_bytes(content)
    with pytest.raises(
        PackError, match=r"model\.onnx was altered: sha256 [0-9a-f]{64}, the manifest says [0-9a-f]{64}"
    ):
        read_pack(hollow)


def test_a_missing_file_is_named(hollow: Path):
    (hollow / "tokenizer.json").unlink()
    with pytest.raises(PackError, match=r"tokenizer\.json is missing.*export or download the pack again"):
        read_pack(hollow)


def test_a_file_that_nobody_listed_is_refused(hollow: Path):
    """Weights beside the graph would be loaded without having been checked."""
    (hollow / "model.onnx.data").write_bytes(b"weights")
    with pytest.raises(PackError, match=r"model\.onnx\.data is not listed"):
        read_pack(hollow)


def test_litter_of_file_managers_does_no_harm(hollow: Path):
    (hollow / ".DS_Store").write_bytes(b"litter")
    assert read_pack(hollow).manifest.name == "hollow"


def test_a_link_is_not_followed(hollow: Path, tmp_path: Path):
    (hollow / "model.onnx").rename(tmp_path / "elsewhere.onnx")
    (hollow / "model.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(PackError, match="not a regular file"):
        read_pack(hollow)


def test_a_pipe_in_place_of_a_file_does_not_hang(hollow: Path):
    (hollow / "model.onnx").unlink()
    os.mkfifo(hollow / "model.onnx")
    with pytest.raises(PackError, match="not a regular file"):
        read_pack(hollow)


def test_a_tokenizer_must_have_the_fingerprint_of_the_manifest(hollow: Path):
    write_manifest(hollow, dataclasses.replace(hollow_manifest(hollow), tokenizer_fingerprint="0" * 64))
    with pytest.raises(PackError, match=r"tokenizer\.json has fingerprint [0-9a-f]{64}, the manifest says 0{64}"):
        read_pack(hollow)


def test_a_manifest_cannot_reach_outside_its_pack(hollow: Path, tmp_path: Path):
    (tmp_path / "secret").write_text("secret")
    fields = json.loads((hollow / "manifest.json").read_text())
    fields["files"]["../secret"] = dataclasses.asdict(describe_files(hollow)["model.onnx"])
    (hollow / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(PackError, match="plain file name"):
        read_pack(hollow)


def test_a_manifest_that_cannot_be_written_is_a_pack_error(hollow: Path):
    manifest = hollow_manifest(hollow)
    with pytest.raises(PackError, match="cannot write"):
        write_manifest(hollow / "nowhere", manifest)
    with pytest.raises(PackError, match="cannot read"):
        describe_files(hollow / "nowhere")
