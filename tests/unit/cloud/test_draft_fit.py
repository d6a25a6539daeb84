"""Whether a draft fits its target is told by their folders, before the weights of either are read."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from outrider_cloud.build import build_engine
from outrider_cloud.drafts.fit import check_draft
from outrider_cloud.engine.config import EngineConfig
from outrider_cloud.model.loading import BUNDLED, bundled_draft, bundled_model
from outrider_shared.errors import ConfigError, MismatchError, ModelError, PackError
from outrider_shared.packs import MANIFEST, bundled_pack
from support.models import write_tiny_model

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def weightless(tmp_path: Path) -> Path:
    """The bundled target without its weights: reading them would fail."""
    folder = tmp_path / "target"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(bundled_model() / name, folder)
    return folder


@pytest.mark.parametrize("draft", [BUNDLED, bundled_pack(), bundled_draft()], ids=["bundled", "pack", "folder"])
def test_what_was_made_for_the_target_fits(draft: str | Path, weightless: Path):
    check_draft(draft, weightless)


def test_a_draft_of_other_tokens_is_refused_by_its_vocabulary_or_its_tokenizer(weightless: Path, tmp_path: Path):
    narrow = write_tiny_model(tmp_path / "narrow")
    with pytest.raises(MismatchError, match="vocabulary of the draft narrow is 97, that of the target target 4096"):
        check_draft(narrow, weightless)
    other = write_tiny_model(tmp_path / "other", vocab_size=4096)
    with pytest.raises(MismatchError, match="tokenizer of the draft other"):
        check_draft(other, weightless)


def test_what_is_no_draft_is_named(weightless: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="nowhere does not exist"):
        check_draft(tmp_path / "nowhere", weightless)
    with pytest.raises(ConfigError, match=f"has no {MANIFEST}"):
        check_draft(tmp_path, weightless)
    damaged = shutil.copytree(bundled_pack(), tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"")
    with pytest.raises(PackError, match="0 bytes"):
        check_draft(damaged, weightless)
    (weightless / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        check_draft(BUNDLED, weightless)


def test_an_engine_refuses_the_draft_before_it_reads_the_target(weightless: Path, tmp_path: Path):
    with pytest.raises(MismatchError, match="vocabulary"):
        build_engine(weightless, EngineConfig(), draft=write_tiny_model(tmp_path / "narrow"))
    with pytest.raises(ModelError):
        build_engine(weightless, EngineConfig(), draft=BUNDLED)
