"""A disk that is full in the middle of a run: a sentence, nothing half, and the same command goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from click.testing import CliRunner, Result

from outrider_cloud.train.cli import train
from outrider_cloud.train.loop.folders import write_model
from outrider_shared.errors import StorageError
from support.full_disk import files_of_at_most
from unit.train.toys import toy_model, write_folder, write_texts

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def room(tmp_path: Path) -> Path:
    write_folder(toy_model(0), tmp_path / "target")
    write_texts(tmp_path / "texts.jsonl", 200)
    return tmp_path


def draft(room: Path, out: str) -> Result:
    small = ("data.longest=32", "distil.tokens_per_batch=256", "distil.writing.most=8", "fit.checkpoint_every=2")
    flags = [part for each in small for part in ("--set", each)]
    given = ["--target", str(room / "target"), "--data", str(room / "texts.jsonl"), "--out", str(room / out)]
    sizes = ["--steps", "4", "--prompts", "16", "--keep", "layers=1", "--precision", "fp32"]
    return CliRunner().invoke(train, ["draft", *given, *sizes, *flags], catch_exceptions=False)


def test_a_draft_that_found_the_disk_full_goes_on_when_there_is_room(room: Path):
    for size_bytes, what in ((256, "samples"), (20_000, r"checkpoint.pt")):
        with files_of_at_most(size_bytes):
            told = draft(room, "cut")
        assert told.exit_code == 1
        assert f"outrider: {room}/cut.work/{what}: File too large (is the disk full" in told.stderr
        assert not (room / "cut").exists()
        assert not (room / "cut.work" / "checkpoint.pt").exists()
    for out in ("cut", "whole"):
        assert draft(room, out).exit_code == 0
    cut, whole = (torch.load(room / f"{out}.work" / "checkpoint.pt")["model"] for out in ("cut", "whole"))
    assert all(torch.equal(cut[name], value) for name, value in whole.items())


def test_a_model_folder_stays_as_it_was_when_the_new_one_does_not_fit(room: Path):
    folder = room / "target"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with files_of_at_most(10_000), pytest.raises(StorageError, match="target: File too large"):
        write_model(toy_model(1), folder, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (room / ".target.part").exists()
