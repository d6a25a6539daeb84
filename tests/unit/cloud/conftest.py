"""The tiny model as the engine's tests want it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from outrider_cloud.model.loading import LoadedModel


@pytest.fixture
def endless(tiny: LoadedModel) -> LoadedModel:
    """The tiny model without end tokens."""
    return dataclasses.replace(tiny, eos=frozenset())
