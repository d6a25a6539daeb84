"""A fleet on a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outrider_cloud.fleet.registry.database import sqlite_url
from support.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(sqlite_url(tmp_path / "fleet.db"))
    yield made
    made.database.close()
