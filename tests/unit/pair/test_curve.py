"""The pruning curve of a toy: sizes healed on the same texts, judged as drafts and as targets, drawn."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from outrider_pair.curve_cli import curve
from outrider_shared.errors import ConfigError, StorageError
from unit.train.toys import toy_model, write_folder, write_texts

if TYPE_CHECKING:
    from pathlib import Path


def flags(folder: Path) -> list[str]:
    """Of a curve in `folder` whose two sizes are made in a few seconds."""
    small = {
        "distil.tokens_per_batch": "256",
        "data.longest": "32",
        "distil.writing.most": "8",
        "fit.warmup_steps": "1",
    }
    return [
        *("--target", str(folder / "toy"), "--data", str(folder / "texts.jsonl"), "--out", str(folder / "curve")),
        *("--share", "0.7", "--share", "0.5", "--steps", "4", "--prompts", "16", "--precision", "fp32"),
        *("--requests", str(folder / "requests.jsonl"), "--max-tokens", "8", "--json"),
        *(part for key, value in small.items() for part in ("--set", f"{key}={value}")),
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with a curve, and what the command told."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("curve")
    write_folder(toy_model(0, layers=4, hidden=32), folder / "toy")
    write_texts(folder / "texts.jsonl", 120)
    (folder / "requests.jsonl").write_text('{"prompt": "a dog sees"}\n{"prompt": "the cat likes"}\n')
    return folder, told(folder)


def told(folder: Path) -> dict[str, Any]:
    ran = CliRunner().invoke(curve, flags(folder), catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_every_size_is_healed_and_judged_as_draft_and_target(made: tuple[Path, dict[str, Any]]):
    folder, result = made
    *sizes, whole = result["rows"]
    assert [row["share"] for row in sizes] == [0.5, 0.7]
    for row in sizes:
        assert row["parameters"] == pytest.approx(row["share"] * whole["parameters"], rel=0.03)
        assert row["steps"] == 4
        assert 0 < row["held_out"]["valid"] < 1
        assert [cell["temperature"] for cell in row["as_draft"]] == [0, 0.7, 1]
        assert all(cell["tokens_per_step"] >= 1 for cell in row["as_draft"])
        low, high = row["as_target"]["tv_interval"]
        assert 0 < low <= row["as_target"]["tv"] <= high < 1
    assert json.loads((folder / "curve" / "curve.json").read_text())["rows"] == result["rows"]
    assert (folder / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_targets_texts_are_made_once_for_all_sizes(made: tuple[Path, dict[str, Any]]):
    folder, _ = made
    assert {path.name for path in (folder / "curve" / "texts").iterdir()} == {"samples", "held-out"}
    assert not list(folder.glob("curve/share-*/samples"))


def test_a_second_run_makes_only_what_is_missing(made: tuple[Path, dict[str, Any]]):
    folder, result = made
    (folder / "curve" / "share-0.5" / "row.json").unlink()
    logs = {path: path.read_text() for path in folder.glob("curve/share-*/log.jsonl")}
    assert len(logs) == 2
    assert told(folder)["rows"] == result["rows"]
    assert {path: path.read_text() for path in logs} == logs  # no step was trained again


def test_what_cannot_be_done_is_told_before_anything_is_trained(made: tuple[Path, dict[str, Any]], tmp_path: Path):
    folder, _ = made
    (tmp_path / "file").write_text("")
    blocked = [*flags(folder), "--out", str(tmp_path / "file" / "curve")]
    with pytest.raises(StorageError, match="file/curve: Not a directory"):
        CliRunner().invoke(curve, blocked, catch_exceptions=False)
    with pytest.raises(ConfigError, match=r"fit\.stepz"):
        CliRunner().invoke(curve, [*flags(folder), "--set", "fit.stepz=3"], catch_exceptions=False)
