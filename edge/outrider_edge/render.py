"""Prints an answer as it streams in, each token coloured by where it came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.columns import Columns
from rich.console import Console
from rich.table import Table
from rich.text import Text

from outrider_edge.session.events import (
    Finished,
    Offline,
    Online,
    Origin,
    Reconnecting,
    Retracted,
    SessionEvent,
    Settling,
    Tokens,
    Unverified,
    Verified,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer

    from outrider_edge.draft.profile import Candidate

STYLES = {
    Origin.ACCEPTED: "green",
    Origin.CORRECTION: "bold yellow",
    Origin.BONUS: "bold cyan",
    Origin.CLOUD: "default",
    Origin.CLOUD_LOOKUP: "magenta",
    Origin.CLOUD_DRAFT: "blue",
    Origin.UNVERIFIED: "dim italic",
}
UNVERIFIED = STYLES[Origin.UNVERIFIED]
MEANING = {
    Origin.ACCEPTED: "accepted draft",
    Origin.CORRECTION: "correction by the target",
    Origin.BONUS: "bonus token of the target",
    Origin.CLOUD: "decoded in the cloud",
    Origin.CLOUD_LOOKUP: "found in the text by the cloud",
    Origin.CLOUD_DRAFT: "drafted in the cloud",
    Origin.UNVERIFIED: "draft alone, unverified",
}

_SHORT = {
    Origin.ACCEPTED: "accepted draft", Origin.CORRECTION: "correction", Origin.BONUS: "bonus",
    Origin.CLOUD: "cloud", Origin.CLOUD_LOOKUP: "cloud lookup", Origin.CLOUD_DRAFT: "cloud draft",
    Origin.UNVERIFIED: "unverified",
}  # fmt: skip


# A model may write what a terminal would obey; the pictures of those characters harm nobody.
_HARMLESS = {i: 0x2400 + i for i in range(32) if chr(i) not in "\n\t"} | dict.fromkeys(range(0x7F, 0xA0), 0x2421)


def harmless(text: str) -> str:
    """Text without characters that a terminal takes for commands."""
    return text.translate(_HARMLESS)


def legend() -> Columns:
    """What the colours mean: in one line where there is room for it, in whole words anywhere."""
    return Columns([Text(_SHORT[origin], style) for origin, style in STYLES.items()], padding=(0, 2))


def comparison_table(result: dict[str, Any]) -> Table:
    """Drafted against plain: one row per request, and a sum."""
    title = "drafted at the edge against plain cloud streaming\n(same requests, same connection)"
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("request", max_width=15, no_wrap=True, overflow="ellipsis")
    for name in ("tokens", "steps\nours/plain", "tokens\nper step", "tokens/s\nours/plain", "ratio", "same\ntext"):
        table.add_column(name, justify="right", no_wrap=True)
    for answer in result["requests"]:
        table.add_row(answer["request"], *_cells(answer))
    table.add_section()
    table.add_row("all", *_cells(result), style="bold")
    return table


def profile_table(candidates: Sequence[Candidate]) -> Table:
    """Packs on this device, the best first."""
    table = Table("pack", "precision", box=SIMPLE_HEAD)
    for name in ("MB", "us: 1/2/4/8 rows", "tokens/step", "draft us/token", "tokens/s"):
        table.add_column(name, justify="right")
    for each in candidates:
        table.add_row(
            each.path, each.precision, f"{each.size_bytes / 1e6:.1f}",
            "/".join(f"{micro:.0f}" for micro in each.pass_us.values()), f"{each.tokens_per_step:.2f}",
            f"{each.draft_us_per_token:.0f}", f"{each.tokens_per_s:.1f}",
        )  # fmt: skip
    return table


def _cells(answer: dict[str, Any]) -> list[str]:
    plain, count = answer["plain"], len(answer["token_ids"])
    rate, plain_rate = count / answer["wall_s"], len(plain["token_ids"]) / plain["wall_s"]
    return [
        str(count),
        f"{answer['cloud_steps']}/{plain['cloud_steps']}",
        f"{answer['tokens_per_step']:.2f}",
        f"{rate:.0f}/{plain_rate:.0f}",
        f"{rate / plain_rate:.2f}x",
        "yes" if answer["identical_to_plain"] else "NO",
    ]


def settling_note(wait_s: float) -> str:
    """What is said of an answer that is complete, but unverified."""
    return f"complete, but unverified: it waits up to {wait_s:g} s for the cloud"


def retracted_note(count: int) -> str:
    """What is said before the text that stands is printed again."""
    return f"the cloud chose otherwise, {count} unverified tokens are taken back; what stands:"


class TokenPrinter:
    """Takes a session's events and prints their text. Characters split over tokens appear when they are whole.

    Unverified text is dim and in brackets. When it is taken back, what stands is printed again.

    Args:
        tokenizer: Of the pack.
        console: Where to print.
    """

    def __init__(self, tokenizer: Tokenizer, console: Console | None = None) -> None:
        self._tokenizer = tokenizer
        self._console = console or Console(highlight=False)
        self.begin()

    def begin(self) -> None:
        """Start a new answer."""
        self._ids: list[int] = []
        self._shown = self._unverified = 0

    def __call__(self, event: SessionEvent) -> None:
        """Show one event."""
        if isinstance(event, Verified):
            self._verified(len(event.tokens))
        elif isinstance(event, Tokens):
            for token in event.tokens:
                self._put(self._fresh(token.id), STYLES[token.origin])
        elif isinstance(event, Unverified):
            self._alone(event)
        elif isinstance(event, Retracted):
            self._retracted(event.count)
        else:
            self._told(event)

    def _told(self, event: SessionEvent) -> None:
        """What is no text."""
        left = self._unverified
        if isinstance(event, Reconnecting) and not left:
            self._note(f"link lost ({event.reason}), going on in {event.wait_s:.1f} s")
        elif isinstance(event, Offline):
            self._note(f"offline: {event.reason}")
        elif isinstance(event, Settling):
            self._note(settling_note(event.wait_s))
        elif isinstance(event, Online):
            self._note("online again" + (f", {left} tokens to verify" if left else ""))
        elif isinstance(event, Finished) and left:
            self._put("]", UNVERIFIED)
            self._note(f"the last {left} tokens are the draft model's alone: the cloud did not see them")

    def _alone(self, event: Unverified) -> None:
        if not self._unverified:
            self._put("[unverified: ", UNVERIFIED)
        self._unverified += len(event.tokens)
        for token in event.tokens:
            self._put(self._fresh(token), UNVERIFIED)

    def _verified(self, count: int) -> None:
        self._unverified -= count
        if not self._unverified:
            self._put("]", UNVERIFIED)
            self._note("verified: all of it is the cloud model's own")

    def _retracted(self, count: int) -> None:
        self._put("]", UNVERIFIED)
        self._unverified -= count
        del self._ids[-count:]
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        self._shown = len(text)
        self._note(retracted_note(count))
        self._put(text, "default")

    def _put(self, text: str, style: str) -> None:
        self._console.print(Text(harmless(text), style), end="", soft_wrap=True)

    def _note(self, text: str) -> None:
        self._console.print(Text(f"\n{text}", "dim"), soft_wrap=True)

    def _fresh(self, token_id: int) -> str:
        """Text that became complete with this token."""
        self._ids.append(token_id)
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        fresh, self._shown = text[self._shown :], len(text)
        return fresh
