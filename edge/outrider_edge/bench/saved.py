"""What an interrupted run has measured already: a line per cell and per load, appended as it is done.

A file belongs to one set of settings; with others it is refused rather than mixed.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from outrider_shared.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outrider_shared.emulator.profile import LinkProfile


def described(profile: LinkProfile) -> dict[str, float]:
    """A link as results name it."""
    return {
        "rtt_ms": profile.rtt_s * 1e3,
        "jitter_ms": profile.jitter_s * 1e3,
        "rate_kbit": profile.up_bps / 1e3,
        "loss": profile.loss,
    }


class Saved:
    """Cells, loads and engines of a run.

    Args:
        file: Where they are kept; None keeps them in memory only.
        settings: Of the run.

    Raises:
        ConfigError: if the file has other settings, or is none of ours.
    """

    def __init__(self, file: Path | None, settings: dict[str, Any]) -> None:
        self._file = file
        self._cells: dict[tuple[float, str], dict[str, Any]] = {}
        self._loads: dict[tuple[float, str, int], dict[str, Any]] = {}
        self._engines: dict[float, dict[str, Any]] = {}
        settings = json.loads(json.dumps(settings, default=str))
        lines = file.read_text().splitlines() if file is not None and file.exists() else []
        try:
            entries = [json.loads(line) for line in lines]
            if entries and entries[0]["settings"] != settings:
                raise ConfigError(f"{file} was begun with other settings", hint="give another file, or those settings")
            for entry in entries[1:]:
                self._take(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is no file of this command: {error}", hint="give another file") from error
        if not lines:
            self._append({"settings": settings})

    def cell(self, step_ms: float, profile: LinkProfile) -> dict[str, Any] | None:
        """A measured cell."""
        return self._cells.get((step_ms, _key(profile)))

    def keep(self, step_ms: float, profile: LinkProfile, cell: dict[str, Any]) -> None:
        """A cell was measured."""
        entry = {"step_ms": step_ms, "link": _key(profile), "cell": cell}
        self._take(entry)
        self._append(entry)

    def load(self, step_ms: float, profile: LinkProfile, sessions: int) -> dict[str, Any] | None:
        """What so many devices at once were measured to give on a link."""
        return self._loads.get((step_ms, _key(profile), sessions))

    def keep_load(self, step_ms: float, profile: LinkProfile, sessions: int, load: dict[str, Any]) -> None:
        """That was measured."""
        entry = {"step_ms": step_ms, "link": _key(profile), "sessions": sessions, "load": load}
        self._take(entry)
        self._append(entry)

    def is_whole(self, step_ms: float) -> bool:
        """Whether nothing of an engine is left to measure."""
        return step_ms in self._engines

    def keep_engine(self, step_ms: float, engine: dict[str, Any]) -> None:
        """All of an engine was measured; what is told of it beside its cells."""
        entry = {"step_ms": step_ms, "engine": engine}
        self._take(entry)
        self._append(entry)

    def engine(self, step_ms: float, links: Sequence[LinkProfile]) -> dict[str, Any]:
        """An engine with its cells, as results have it."""
        return {**self._engines[step_ms], "cells": [self._cells[step_ms, _key(profile)] for profile in links]}

    def _take(self, entry: dict[str, Any]) -> None:
        if "cell" in entry:
            self._cells[entry["step_ms"], entry["link"]] = entry["cell"]
        elif "load" in entry:
            self._loads[entry["step_ms"], entry["link"], entry["sessions"]] = entry["load"]
        else:
            self._engines[entry["step_ms"]] = entry["engine"]

    def _append(self, entry: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a") as file:
                file.write(json.dumps(entry) + "\n")


def _key(profile: LinkProfile) -> str:
    return json.dumps(described(profile))
