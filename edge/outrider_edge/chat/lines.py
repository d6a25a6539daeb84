r"""Where messages come from: a terminal with history and more than one line, or a pipe.

One rule for both: a line that ends with \ goes on in the next, and what begins with three quotes ends with three.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from outrider_edge.chat.commands import ABOUT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

_QUOTES = '"""'


class Lines(Protocol):
    """Hands out messages."""

    def next(self) -> str:
        """The next one.

        Raises:
            EOFError: if there are no more.
            KeyboardInterrupt: if what was being typed is to be forgotten.
        """

    def unseen(self) -> AbstractContextManager[None]:
        """While an answer is shown: what is typed meanwhile is kept for `next`, and does not get into the answer."""


def whole(text: str) -> bool:
    """Whether a message is complete, or goes on in the next line."""
    begun = text.lstrip()
    if begun.startswith(_QUOTES):
        return begun.rstrip().endswith(_QUOTES) and len(begun.rstrip()) >= 2 * len(_QUOTES)
    return not text.endswith("\\")


def unwrapped(text: str) -> str:
    """A complete message without what held its lines together."""
    bare = text.strip()
    if bare.startswith(_QUOTES):
        return bare.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return bare.replace("\\\n", "\n")


class PipedLines:
    """Messages from a pipe or a file: one a line."""

    def __init__(self, source: TextIO | None = None) -> None:
        self._source = source or sys.stdin

    def next(self) -> str:
        """See `Lines`."""
        text = self._source.readline()
        if not text:
            raise EOFError
        text = text.removesuffix("\n")
        while not whole(text) and (more := self._source.readline()):
            text += "\n" + more.removesuffix("\n")
        return unwrapped(text)

    def unseen(self) -> AbstractContextManager[None]:
        """See `Lines`."""
        return contextlib.nullcontext()


class TypedLines:
    """Messages from a terminal. Enter sends, Alt-Enter begins a new line, the arrows go through the history.

    Args:
        history: File that keeps what was typed, for its owner alone; None keeps nothing.
    """

    def __init__(self, history: Path | None) -> None:
        self._session = _session(history)

    def next(self) -> str:
        """See `Lines`."""
        # Ctrl-C is a key here. A signal that was on its way when an answer ended must not hit the prompt's own making.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            return unwrapped(self._session.prompt())
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def unseen(self) -> Iterator[None]:
        """See `Lines`."""
        try:
            import termios  # noqa: PLC0415 - not on every system
        except ImportError:
            yield
            return
        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
        quiet = list(before)
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        try:
            yield
        finally:
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def history_file() -> Path:
    """Where what was typed is kept."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "outrider" / "chat_history"


def _session(history: Path | None) -> PromptSession[str]:
    from prompt_toolkit import PromptSession  # noqa: PLC0415 - only terminals need it
    from prompt_toolkit.completion import WordCompleter  # noqa: PLC0415 - as above
    from prompt_toolkit.history import FileHistory, InMemoryHistory  # noqa: PLC0415 - as above

    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(history, os.O_CREAT | os.O_APPEND, 0o600))
    return PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=InMemoryHistory() if history is None else FileHistory(history),
        completer=WordCompleter([f"/{name}" for name in ABOUT], sentence=True),
        complete_while_typing=False,
    )


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings  # noqa: PLC0415 - as above

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        if whole(event.current_buffer.text):
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.insert_text("\n")

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys
