"""The version of this program, for whoever asks over a network."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """As it was installed, or `source` for a tree that was not."""
    try:
        return importlib.metadata.version("outrider")
    except importlib.metadata.PackageNotFoundError:
        return "source"
