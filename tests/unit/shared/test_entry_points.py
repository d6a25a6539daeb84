"""Commands are found by entry points: each must name a click command that exists."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from outrider_shared import cli

_PROJECT = tomllib.loads((Path(__file__).resolve().parents[3] / "pyproject.toml").read_text())["project"]
_ENTRIES = [
    (group, name, target)
    for group in (cli.GROUP, cli.BENCHES, cli.TRAINING)
    for name, target in _PROJECT["entry-points"][group].items()
]


@pytest.mark.parametrize(("group", "name", "target"), _ENTRIES)
def test_entry_points_name_commands(group, name, target):
    """The target is a click command of the entry's name, and its help can be told."""
    module, _, attribute = target.partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.help


def test_benches_stand_below_one_command():
    """`outrider bench` is a group that loads its commands from a registry of their own."""
    assert isinstance(cli.bench, cli.InstalledBenches)
    assert cli.bench.registry == "outrider.bench"


def test_help_is_quick():
    """`outrider --help` imports every command for its short help: none may bring in what only its work needs."""
    modules = [target.partition(":")[0] for group, _, target in _ENTRIES if group == cli.GROUP]
    slow = "torch transformers scipy matplotlib fastapi starlette uvicorn sqlalchemy alembic"
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        f"sys.exit(', '.join(sorted(set({slow.split()}) & set(sys.modules))) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"imported {done.stderr}"
