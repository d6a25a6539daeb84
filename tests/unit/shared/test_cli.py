"""How commands end."""

from __future__ import annotations

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
