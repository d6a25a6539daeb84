"""How commands end."""

from __future__ import annotations

import importlib.metadata

import click
import pytest

from outrider_shared.cli import TypedErrors
from outrider_shared.errors import ConfigError, UnavailableError

ENDS = {"stopped": (KeyboardInterrupt(), 130), "wrong": (ConfigError("no"), 2), "away": (UnavailableError("no"), 1)}


@pytest.mark.parametrize("name", ENDS)
def test_a_command_ends_with_a_sentence_and_a_status_that_tells_who_is_to_blame(name, capsys):
    """Ctrl-C, the caller, everything else; also below another group."""
    error, status = ENDS[name]

    @click.command()
    def fail() -> None:
        raise error

    group = TypedErrors(commands={"inner": TypedErrors("inner", commands={"fail": fail})})
    with pytest.raises(SystemExit) as ended:
        group.main(["inner", "fail"])
    assert ended.value.code == status
    (line,) = capsys.readouterr().err.split("\n")[-2:-1]
    assert line.startswith("outrider: ")


@pytest.mark.parametrize(
    ("module", "told"),
    [("torch", "'.[cloud]' or '.[train]'"), ("prometheus_client.core", "'.[edge]'"), ("no_such_module", "'.[edge]'")],
)
def test_a_module_that_is_not_installed_is_told_with_what_brings_it(monkeypatch, capsys, module, told):
    wanted = ["torch>=2; extra == 'cloud'", "torch>=2; extra == 'train'", "prometheus-client>=1; extra == 'edge'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)

    @click.command()
    def lacking() -> None:
        raise ModuleNotFoundError(name=module)

    with pytest.raises(SystemExit) as ended:
        TypedErrors(commands={"lacking": lacking}).main(["lacking"])
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert f"needs the module {module}" in line
    assert told in line
