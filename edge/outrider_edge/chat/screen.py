"""Shows an answer while it streams in: in colours by origin on a terminal, as bare text elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from outrider_edge.render import MEANING, STYLES, UNVERIFIED, harmless, legend, retracted_note, settling_note
from outrider_edge.session.events import Origin

if TYPE_CHECKING:
    from outrider_edge.chat.answerer import Chunk

# What is added up of the answers -> how /stats calls it. Origins are the device's view, these are the cloud's.
_SUMS = {
    "drafted": "drafts sent", "accepted": "of these accepted in time", "cloud_steps": "cloud steps",
    "saved_cloud_steps": "cloud steps saved", "bytes_up": "bytes up", "bytes_down": "bytes down",
}  # fmt: skip


class Screen:
    """One conversation's output.

    Args:
        console: Where answers go; notes go to its standard error where that is no terminal.

    Attributes:
        rich: Whether origins are shown; then answers have to come with details.
        text: Of the answer so far.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)
        self.rich = self._console.is_terminal
        self._notes = self._console if self.rich else Console(highlight=False, stderr=True)
        self._origins: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._answers, self._seconds = 0, 0.0
        self.begin()

    def begin(self) -> None:
        """A new answer."""
        self.text = ""
        self._alone: list[str] = []
        self._started, self._column = time.monotonic(), False
        self._last: Chunk = {}
        self._trouble = ""
        self._spent: dict[str, Any] = {}
        self._told_tokens = 0

    def take(self, chunk: Chunk) -> None:
        """Show one chunk."""
        detail = chunk.get("outrider") or {}
        if not self.rich:
            for choice in chunk["choices"]:
                self._put(choice["delta"].get("content") or "", "default")
        for kind, say in (("reconnecting", "link lost"), ("offline", "offline")):
            if kind in detail and not self._alone and self._trouble != (trouble := f"{say}: {detail[kind]}"):
                self._trouble = trouble  # each try fails alike; once is enough
                self._note(trouble)
        if "unverified" in detail:
            self._alone_told(detail["unverified"])
        if "settling" in detail:
            self._note(settling_note(detail["settling"]))
        if "retracted" in detail:
            self._retracted(detail["retracted"])
        if self.rich:
            self._told(detail.get("tokens") or [])
        self._spent = detail.get("totals") or self._spent
        self._last = chunk if "timings" in chunk else self._last
        if chunk.get("usage"):
            self._ended(self._last, chunk["usage"]["completion_tokens"])

    def finish(self, note: str = "") -> None:
        """The answer is over, or was left; then what it cost so far counts, too."""
        self._add(self._spent, self._told_tokens)
        if self._column:
            self._console.print()
        if note:
            self.note(note)

    def note(self, words: str) -> None:
        """Something that is no answer."""
        self._say(words, "dim")

    def problem(self, words: str) -> None:
        """Something that went wrong."""
        self._say(words, "red")

    def hello(self, about: str) -> None:
        """The first lines."""
        if self.rich:
            self.note(about)
            self._console.print(legend())

    def stats(self, status: dict[str, Any]) -> None:
        """What was done so far."""
        sums, tokens = self._sums, self._sums["tokens"]
        rows: dict[str, Any] = {"answers": self._answers, "tokens": tokens}
        rows |= {MEANING[Origin(name)]: count for name, count in self._origins.most_common() if count}
        rows |= {about: sums[name] for name, about in _SUMS.items()}
        if sums["cloud_steps"]:
            rows["tokens per cloud step"] = round(tokens / sums["cloud_steps"], 2)
        if self._seconds:
            rows["tokens per second"] = round(tokens / self._seconds, 1)
        rows |= {name: status[name] for name in ("draft", "cloud", "model", "rtt_ms") if status.get(name) is not None}
        wide = max(map(len, rows))
        for name, value in rows.items():
            self.note(f"{name:<{wide}}  {value}")

    # ---- one answer -----------------------------------------------------------------------------------------------

    def _told(self, tokens: list[dict[str, Any]]) -> None:
        for token in tokens:
            self._told_tokens += 1
            self._origins[token["origin"]] += 1
            if self._alone:
                # It stands there already, dim; that it is confirmed is told when all of them are, or when they are not.
                self._alone.pop(0)
                self.text += token["text"]
                if not self._alone:
                    self._mark("]")
                    if token["origin"] != Origin.UNVERIFIED:
                        self._note("verified: all of it is the cloud model's own")
            else:
                self.text += token["text"]
                self._show(token["text"], STYLES[Origin(token["origin"])])

    def _alone_told(self, texts: list[str]) -> None:
        if not self._alone:
            self._mark("[unverified: ")
        self._alone += texts
        self._show("".join(texts), UNVERIFIED)

    def _retracted(self, count: int) -> None:
        self._mark("]")
        del self._alone[-count:]
        self._note(retracted_note(count))
        self._show(self.text + "".join(self._alone), "default")

    def _ended(self, chunk: Chunk, tokens: int) -> None:
        timings, seconds = chunk["timings"], time.monotonic() - self._started
        self._add(timings, tokens)
        if not self.rich:
            return
        steps = timings["cloud_steps"]
        about = [f"{tokens} tokens", f"{tokens / seconds:.0f}/s" if seconds else ""]
        if steps:
            about.append(f"{steps} cloud steps, {timings['accepted']} drafts accepted, {timings['bytes_up']} B up")
        if chunk.get("unverified"):
            about.append("no target confirmed the end of it")
        self._note(", ".join(part for part in about if part))

    def _add(self, timings: dict[str, Any], tokens: int) -> None:
        """Count an answer, once."""
        if timings:
            self._answers, self._seconds = self._answers + 1, self._seconds + time.monotonic() - self._started
            self._sums.update({name: timings[name] for name in _SUMS} | {"tokens": tokens})
        self._spent = {}

    def _say(self, words: str, style: str) -> None:
        # A pipe gets a line a note, a terminal one that breaks between words.
        self._notes.print(Text(harmless(words), style), soft_wrap=not self._notes.is_terminal)

    def _put(self, text: str, style: str) -> None:
        self.text += text
        self._show(text, style)

    def _show(self, text: str, style: str) -> None:
        if text:
            self._console.print(Text(harmless(text), style), end="", soft_wrap=True)
            self._column = not text.endswith("\n")

    def _mark(self, text: str) -> None:
        self._show(text, UNVERIFIED)

    def _note(self, words: str) -> None:
        if self._column and self.rich:
            self._console.print()
            self._column = False
        self.note(words)
