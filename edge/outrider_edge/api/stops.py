"""Stop strings: text is held back while a match may still open, and nothing of a match, or behind it, gets out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class StopScanner:
    """Looks for stop strings in a growing text.

    The match that begins first wins, the longest of those. Feed token by token: then where a text ends does not
    depend on how tokens were grouped.

    Args:
        stops: Not empty strings.

    Attributes:
        matched: The stop string that was found.
        held: Text that may be the beginning of a match.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.matched: str | None = None
        self.held = ""

    def push(self, text: str) -> str:
        """Text that is safe to show; after a match, nothing more."""
        if self.matched is not None:
            return ""
        text, self.held = self.held + text, ""
        found = [(place, -len(stop), stop) for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            place, _, self.matched = min(found)
            return text[:place]
        open_ = self._open(text)
        self.held = text[len(text) - open_ :]
        return text[: len(text) - open_]

    def flush(self) -> str:
        """The text is over: what was held back is no match."""
        rest, self.held = self.held, ""
        return rest

    def _open(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stops):
                return size
        return 0
