"""Any text files as documents, one line or one file at a time: .jsonl, .txt, each plain or .zst.

A line of .jsonl is {"text": ...} or {"messages": [{"role", "content"}, ...]}; a .txt file is cut at empty lines. A line
that is neither is named by file and number, and refused or skipped as the reader was told.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from outrider_cloud.train.texts.corpus import CorpusError
from outrider_shared.zstd_lines import zstd_lines

_KINDS = (".jsonl", ".txt")


@dataclass
class Reading:
    """How broken lines are met; remembers those that were skipped.

    Attributes:
        skip_broken: Skip them instead of refusing the file.
        skipped: What was wrong with those so far; the first hundred.
        skipped_count: How many there were.
    """

    skip_broken: bool = False
    skipped: list[str] = field(default_factory=list)
    skipped_count: int = 0

    def broken(self, problem: str) -> None:
        """Raise CorpusError, or note the line and go on."""
        if not self.skip_broken:
            raise CorpusError(problem, hint="mend the line, or go on without it: --skip-broken")
        self.skipped_count += 1
        if len(self.skipped) < 100:
            self.skipped.append(problem)


@dataclass(frozen=True)
class Document:
    """A text, or a chat (then `text` is empty); `place` is file:line."""

    place: str
    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()

    @property
    def key(self) -> str:
        """What decides whether it is held out: the text, or the first thing that the user says."""
        if not self.messages:
            return self.text.strip()
        return next((str(m.get("content")) for m in self.messages if m.get("role") == "user"), self.place)


def read_documents(files: Sequence[Path], reading: Reading) -> Iterator[Document]:
    """All documents of the files, in order. Raises CorpusError."""
    for path in files:
        kind = path.suffixes[-2] if path.suffix == ".zst" and len(path.suffixes) > 1 else path.suffix
        if kind not in _KINDS:
            raise CorpusError(f"{path}: of kind {kind or 'none'}", hint="training reads .jsonl and .txt, also as .zst")
        lines = _lines(path, reading)
        yield from _objects(lines, reading) if kind == ".jsonl" else _paragraphs(lines)


def _lines(path: Path, reading: Reading) -> Iterator[tuple[str, str]]:
    """(place, line); a line that is no UTF-8 is broken, an archive that ends early is refused in any case."""
    number = 0
    try:
        with path.open("rb") as raw:
            for line in zstd_lines(raw) if path.suffix == ".zst" else raw:
                number += 1
                try:
                    yield f"{path}:{number}", line.decode("utf-8")
                except UnicodeDecodeError as error:
                    reading.broken(f"{path}:{number}: not UTF-8: {error.reason} at byte {error.start}")
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from error
    except zstandard.ZstdError as error:
        raise CorpusError(
            f"{path}:{number}: damaged after this line: {error}", hint="download the file again"
        ) from error


def _objects(lines: Iterator[tuple[str, str]], reading: Reading) -> Iterator[Document]:
    for place, line in lines:
        if not line.strip():
            continue
        try:
            yield _document(place, json.loads(line))
        except json.JSONDecodeError as error:
            reading.broken(f"{place}: not JSON: {error.msg} at column {error.colno}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            reading.broken(f"{place}: {error}")


def _document(place: str, row: Any) -> Document:
    if not isinstance(row, dict):
        raise TypeError(f"expected a JSON object, found {type(row).__name__}")
    if "messages" in row:
        messages = row["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
            raise TypeError("messages is no list of objects with a role")
        return Document(place, messages=tuple(messages))
    if not isinstance(row.get("text"), str):
        raise TypeError('neither "text" (a string) nor "messages" (a list) in the object')
    return Document(place, row["text"])


def _paragraphs(lines: Iterator[tuple[str, str]]) -> Iterator[Document]:
    at, part = "", list[str]()
    for place, line in lines:
        if line.strip():
            at = at if part else place
            part.append(line)
        elif part:
            yield Document(at, "".join(part).strip())
            part = []
    if part:
        yield Document(at, "".join(part).strip())
