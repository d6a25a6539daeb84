"""Fixtures of all tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from pathlib import Path

    from outrider_cloud.model.loading import LoadedModel

# No test depends on the speed of the machine; a failing example can be repeated from its printed blob.
settings.register_profile("outrider", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("outrider")


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_step():
    """Small models are quickest with one thread, and parallel test runs do not starve each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A Hugging Face folder of a tiny random Llama."""
    from support.models import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder) -> LoadedModel:
    """The tiny model, loaded."""
    from support.models import loaded

    return loaded(tiny_folder)
