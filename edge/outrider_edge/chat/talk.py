"""The conversation: a line is read, done or answered, and shown, until there are no more."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from outrider_edge.chat.commands import ABOUT, PARAMETERS, body, parameter, read
from outrider_shared.errors import ContextError, OutriderError

if TYPE_CHECKING:
    from outrider_edge.chat.answerer import Answerer
    from outrider_edge.chat.commands import Command
    from outrider_edge.chat.lines import Lines
    from outrider_edge.chat.screen import Screen
    from outrider_edge.chat.transcript import Transcript


class Talk:
    """One conversation.

    Args:
        answerer: Who answers.
        lines: Who asks.
        screen: Where it is shown.
        transcript: What was said before.
        parameters: As `/set` changes them.

    Attributes:
        failed: Whether the latest turn ended with an error.
    """

    def __init__(
        self, answerer: Answerer, lines: Lines, screen: Screen, transcript: Transcript, parameters: dict[str, Any]
    ) -> None:
        self._answerer, self._lines, self._screen = answerer, lines, screen
        self._transcript, self._parameters = transcript, dict.fromkeys(PARAMETERS) | parameters
        self.failed = False

    def run(self) -> None:
        """Go round until the lines end or somebody leaves."""
        while True:
            try:
                line = self._lines.next()
            except EOFError:
                return
            except KeyboardInterrupt:
                self._screen.note("Ctrl-D or /quit leaves")
                continue
            if not line:
                continue
            try:
                asked = read(line)
                if isinstance(asked, str):
                    self._turn(asked)
                elif asked.name == "quit":
                    return
                else:
                    self._do(asked)
                    self.failed = False
            except OutriderError as error:
                self.failed = True
                self._screen.problem(str(error))
                if isinstance(error, ContextError):
                    self._screen.note("/reset forgets the conversation, so that there is room again")
            except KeyboardInterrupt:
                self._screen.note("stopped")

    def _turn(self, words: str) -> None:
        transcript, screen = self._transcript, self._screen
        transcript.ask(words)
        screen.begin()
        asked = body(transcript.messages, self._parameters, details=screen.rich)
        try:
            with self._lines.unseen():
                self._answerer.answer(asked, screen.take)
        except KeyboardInterrupt:
            # What is there stays, so that the conversation can go on from it.
            transcript.answer(screen.text)
            screen.finish("stopped")
        except OutriderError:
            transcript.take_back()
            screen.finish()
            raise
        else:
            transcript.answer(screen.text)
            screen.finish()
            self.failed = False

    # ---- commands -------------------------------------------------------------------------------------------------

    def _do(self, command: Command) -> None:
        {
            "help": self._help,
            "stats": self._stats,
            "set": self._set,
            "system": self._system,
            "retry": self._retry,
            "reset": self._reset,
            "save": self._save,
            "load": self._load,
        }[command.name](command.text)

    def _help(self, _: str) -> None:
        for name, about in ABOUT.items():
            self._screen.note(f"/{name:<8} {about}")
        self._screen.note('Alt-Enter, a \\ at the end, or """ ... """ make messages of several lines')
        self._screen.note("Ctrl-C stops an answer; what there is of it stays")

    def _stats(self, _: str) -> None:
        self._screen.stats(self._answerer.status())

    def _set(self, text: str) -> None:
        shown = list(self._parameters)
        if text:
            name, value = parameter(text)
            self._parameters[name], shown = value, [name]
        for name in shown:
            value = self._parameters[name]
            self._screen.note(f"{name:<12} {'as the settings say' if value is None else value}")

    def _system(self, text: str) -> None:
        if text:
            self._transcript.system = "" if text == "none" else text
        self._screen.note(self._transcript.system or "nothing is told first")

    def _retry(self, _: str) -> None:
        if words := self._transcript.take_back():
            self._turn(words)

    def _reset(self, _: str) -> None:
        self._transcript.reset()
        self._screen.note("forgotten")

    def _save(self, name: str) -> None:
        self._transcript.save(Path(name).expanduser())
        self._screen.note(f"kept in {name}")

    def _load(self, name: str) -> None:
        self._transcript.load(Path(name).expanduser())
        self._screen.note(f"{len(self._transcript.said)} messages")
