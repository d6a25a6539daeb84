"""Flags of `outrider edge chat`: each is followed or refused, none is ignored."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from outrider_edge.chat import cli as chat_cli
from outrider_edge.cli import edge


class _Stopped(Exception):  # noqa: N818 - not an error: where the test looks
    pass


def test_padding_reaches_the_device(monkeypatch):
    """With --cloud, the device of the chat is opened with the padding that was asked for."""

    def stop(config, url, *, direct):
        raise _Stopped(config.cloud.padding, url, direct)

    monkeypatch.setattr(chat_cli, "_answerer", stop)
    done = CliRunner().invoke(edge, ["chat", "--cloud", "127.0.0.1:1", "--padding", "256/20ms"])
    assert isinstance(done.exception, _Stopped)
    assert done.exception.args == ("256/20ms", None, True)


@pytest.mark.parametrize(
    ("flags", "told"),
    [(["--padding", "on"], "--padding without --cloud"), (["--tls"], "--tls without --cloud"),
     (["--cloud", "127.0.0.1:1", "--padding", "much"], "much"),
     (["--cloud", "127.0.0.1:1", "--url", "http://127.0.0.1:8484"], "give one of them")],
)  # fmt: skip
def test_flags_that_cannot_be_followed_are_refused(flags, told):
    """Above all those that keep a secret: a sentence and status 2 before anything is asked."""
    done = CliRunner().invoke(edge, ["chat", *flags])
    assert done.exit_code == 2
    assert told in done.output
    assert "Traceback" not in done.output
