"""Who answers: a daemon, or a device of this process's own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

Chunk = dict[str, Any]


class Answerer(Protocol):
    """Answers requests of the chat endpoint, each to its end."""

    def answer(self, body: dict[str, Any], take: Callable[[Chunk], None]) -> None:
        """Answer; each chunk of the stream is handed over as it comes.

        Raises:
            OutriderError: if it cannot be done.
            KeyboardInterrupt: if the user stopped it; the session is cancelled in the cloud.
        """

    def status(self) -> dict[str, Any]:
        """What is in use, and a round trip to the cloud measured now; as `/outrider/status`.

        Raises:
            OutriderError: if nobody answers.
        """

    def close(self) -> None:
        """Let go."""
