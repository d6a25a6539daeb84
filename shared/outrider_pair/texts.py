"""The requests to evaluate on: JSON lines of the usual kinds, as prompts in tokens, each with the domain it is of.

Kinds of rows: `messages` (a chat; `answer`, or a last turn of the assistant, is the reference), `question` or `prompt`
(with `answer` or `completion`), `turns` (the first is asked), `text` (its first third is the prompt). `domain` names
the domain, by default the file does; `devices` are what a tool call may name. Files may be compressed (`.zst`).
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zstandard

from outrider_shared.chat import render_chat
from outrider_shared.errors import ConfigError, PromptError
from outrider_shared.zstd_lines import zstd_lines

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer

BUNDLED, BUNDLED_DOMAIN = "bundled", "smart-home"
_PROMPT_SHARE = 3  # of a plain text, one part in so many is the prompt


@dataclass(frozen=True)
class Text:
    """One request.

    Attributes:
        domain: What its figures are grouped by.
        prompt: Token ids.
        reference: What the data answers, text; empty where it says nothing.
        devices: Names that a tool call may have; empty where calls are not asked for.
    """

    domain: str
    prompt: tuple[int, ...]
    reference: str = ""
    devices: tuple[str, ...] = ()


@dataclass
class Texts:
    """All requests of some files.

    Attributes:
        rows: The requests.
        broken: `file:line` of lines that were skipped.
        too_long: Requests that would not fit the context.
    """

    rows: list[Text] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    too_long: int = 0


def read_texts(
    paths: list[str], tokenizer: Tokenizer, template: str, *, longest: int, limit: int | None, skip_broken: bool
) -> Texts:
    """Read requests.

    Args:
        paths: Files, or `bundled`.
        tokenizer: Of the pair.
        template: Chat template; without one, a chat is its turns' text.
        longest: Tokens of a prompt at most; longer ones are left out and counted.
        limit: Requests of each file at most.
        skip_broken: Leave out lines that cannot be read instead of refusing the file.

    Raises:
        ConfigError: a file is missing or damaged, a line is no request (named), or nothing is left.
    """
    if longest < 1:
        raise ConfigError("answers of --max-tokens leave no room for a prompt in the context", hint="ask for fewer")
    texts = Texts()
    for path in paths:
        found = 0
        for place, row in _rows(path, texts.broken if skip_broken else None):
            if limit is not None and found >= limit:
                break
            try:
                text = _text(row, _domain(path), tokenizer, template)
            except (KeyError, TypeError, IndexError, ValueError, PromptError) as error:
                _refuse(place, f"is no request: {error!r}", texts.broken if skip_broken else None)
                continue
            if 0 < len(text.prompt) <= longest:
                texts.rows.append(text)
                found += 1
            else:
                texts.too_long += 1
    if not texts.rows:
        raise ConfigError(f"no request of at most {longest} tokens in {', '.join(paths)}")
    return texts


def _domain(path: str) -> str:
    return BUNDLED_DOMAIN if path == BUNDLED else Path(path).name.partition(".")[0]


def _rows(path: str, broken: list[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    source = files("outrider_shared") / "bundled" / "requests.jsonl" if path == BUNDLED else Path(path)
    try:
        raw = source.read_bytes()
        if path.endswith(".zst"):
            raw = b"".join(zstd_lines(io.BytesIO(raw)))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except zstandard.ZstdError as error:
        raise ConfigError(f"{path} is damaged: {error}", hint="download it again") from error
    for number, line in enumerate(raw.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise TypeError(f"a {type(row).__name__} instead of an object")
        except (ValueError, TypeError) as error:
            _refuse(f"{path}:{number}", f"is not JSON: {error}", broken)
            continue
        yield f"{path}:{number}", row


def _refuse(place: str, why: str, broken: list[str] | None) -> None:
    if broken is None:
        raise ConfigError(f"{place} {why}", hint="mend the line, or leave such lines out with --skip-broken")
    broken.append(place)


def _text(row: dict[str, Any], domain: str, tokenizer: Tokenizer, template: str) -> Text:
    domain, devices = str(row.get("domain", domain)), tuple(str(name) for name in row.get("devices", ()))
    if "text" in row:
        ids = tokenizer.encode(str(row["text"])).ids
        cut = max(1, len(ids) // _PROMPT_SHARE)
        return Text(domain, tuple(ids[:cut]), tokenizer.decode(ids[cut:], skip_special_tokens=False), devices)
    messages, reference = _chat(row)
    if not template:
        return Text(domain, tuple(tokenizer.encode(messages[-1]["content"]).ids), reference, devices)
    # A chat template writes the special tokens itself.
    ids = tokenizer.encode(render_chat(template, messages), add_special_tokens=False).ids
    return Text(domain, tuple(ids), reference, devices)


def _chat(row: dict[str, Any]) -> tuple[list[dict[str, str]], str]:
    if "messages" in row:
        turns = [(str(turn["role"]), str(turn["content"] or "")) for turn in row["messages"]]
        asked = max(i for i, (role, _) in enumerate(turns) if role == "user") + 1
        reference = turns[asked][1] if len(turns) > asked and turns[asked][0] == "assistant" else ""
        reference = str(row.get("answer", reference))
        return [{"role": role, "content": content} for role, content in turns[:asked]], reference
    if "turns" in row:
        return [{"role": "user", "content": str(row["turns"][0])}], ""
    question = row["question"] if "question" in row else row["prompt"]
    reference = row.get("answer", row.get("completion", ""))
    return [{"role": "user", "content": str(question)}], str(reference)
