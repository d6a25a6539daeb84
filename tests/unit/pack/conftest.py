"""Model folders and packs, made once for the whole run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from unit.pack.tiny import CONFIGS, write_hollow_pack, write_model


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The Hugging Face folder of a kind of tiny model."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = write_model(tmp_path_factory.mktemp("models") / kind, CONFIGS[kind])
        return made[kind]

    return folder


@pytest.fixture
def hollow(tmp_path: Path) -> Path:
    """A pack that is whole but for having no real model in it."""
    return write_hollow_pack(tmp_path / "hollow")
