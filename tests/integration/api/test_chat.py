"""`outrider edge chat` on a real terminal: colours, Ctrl-C, commands, more than one line, history across runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

from support.daemon import ENVIRONMENT

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\r")


def _own_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A chat on a terminal of its own.

    Attributes:
        raw: All that was written to it.
    """

    def __init__(self, address: str, state, columns: int = 100) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
        command = [sys.executable, "-m", "outrider_edge.cli", "chat", "--url", address, "--temperature", "0"]
        environment = {"TERM": "xterm-256color", "XDG_STATE_HOME": str(state), "PROMPT_TOOLKIT_NO_CPR": "1"}
        # A session of its own, whose terminal this is: Ctrl-C is the terminal's to send.
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env={**ENVIRONMENT, **environment},
            start_new_session=True, preexec_fn=_own_terminal,  # noqa: PLW1509 - one call of the system, nothing else
        )  # fmt: skip
        os.close(theirs)
        self.raw = ""

    def text(self, since: int = 0) -> str:
        """What was written, without what moves and colours."""
        return re.sub(" +\n", "\n", _ESCAPES.sub("", self.raw[since:]))

    def wait(self, words: str, since: int = 0, behind: int = 0, most_s: float = 20.0) -> None:
        """Read until the words are there, in the text after `since`, `behind` so many characters of it."""
        end = time.monotonic() + most_s
        while words not in self.text(since)[behind:]:
            assert time.monotonic() < end, self.text()
            if select.select([self._ours], [], [], 0.1)[0]:
                self.raw += os.read(self._ours, 65536).decode(errors="replace")

    def type(self, keys: str, words: str = "") -> int:
        """Type, and wait for what follows; where the output began."""
        before = len(self.raw)
        os.write(self._ours, keys.encode())
        self.wait(words, before)
        return before

    def say(self, line: str, words: str) -> int:
        """Type a line, wait for the words and the next prompt: what is typed before one may be lost."""
        before = self.type(f"{line}\r", words)
        self.wait("\n>", before + self.raw[before:].rfind(words.split("\n", maxsplit=1)[0]))
        return before

    def ends(self, keys: str) -> int:
        """Type; the status that the chat ends with."""
        os.write(self._ours, keys.encode())
        return self.process.wait(30)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def chat(device, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(columns: int = 100) -> Terminal:
            terminal = Terminal(device.address, tmp_path, columns)
            stack.callback(terminal.close)
            terminal.wait("unverified\n>")
            return terminal

        yield start


def test_a_conversation_on_a_terminal(chat, tmp_path):
    """Answers in colours; Ctrl-C stops an answer, not the talk; the arrows find in the next run what was typed."""
    first = chat()
    assert "accepted draft  correction  bonus  cloud  cloud lookup  cloud draft  unverified\n" in first.text()
    answer = first.say("turn off the kitchen light", "cloud steps,")
    assert "\x1b[32m" in first.raw[answer:], "accepted drafts are green"
    first.say("/set temperature 9", "temperature  9")
    for _ in range(5):  # it may be over before the key is pressed
        began = first.type("tell me\r", "tell me\n")
        first.wait(" ", began, behind=40)  # the answer has begun
        first.type("\x03", "\n>")
        if "stopped" in first.text(began):
            break
        first.say("/reset", "forgotten")
    else:
        pytest.fail(first.text(answer))
    assert "^C" not in first.text(began)
    first.say("/stats", "rtt_ms")
    first.say("/nothing", "there is no command /nothing")
    first.say("/system one \\\rtwo", "one\ntwo")
    assert first.ends("\x04") == 0
    assert (tmp_path / "outrider" / "chat_history").stat().st_mode & 0o77 == 0
    second = chat(columns=24)
    second.type("\x1b[A", "two")
    second.type("\x03", "leaves\n>")
    assert second.ends("/quit\r") == 0
