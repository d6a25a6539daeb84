"""Where training texts come from: any text files, or nothing at all (the bundled pair's are in `home.source`)."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from outrider_cloud.train.texts.chat import Example
from outrider_cloud.train.texts.corpus import stable_hash
from outrider_cloud.train.texts.documents import Document, Reading, read_documents
from outrider_shared.chat import render_chat
from outrider_shared.errors import ConfigError


class Source(Protocol):
    """Training texts, already tokens. What is held out is never among the others."""

    @property
    def name(self) -> str:
        """What it is, for messages and to tell stored texts apart."""
        ...

    def examples(self, part: int) -> Iterator[Example]:
        """One pass over the texts; sources that vary their texts do so by `part`."""
        ...

    def prompts(self) -> Iterator[list[int]]:
        """What a model is to continue, without end if there is at least one."""
        ...

    def held_out(self) -> Iterator[Example]:
        """Texts for validation."""
        ...

    def held_out_prompts(self) -> Iterator[list[int]]:
        """What acceptance is measured on."""
        ...


@dataclass(frozen=True)
class FileSource:
    """Texts and chats of files; `held_out_share` of them, by a hash of the text, is kept apart."""

    files: tuple[Path, ...]
    tokenizer: Tokenizer
    template: str = ""
    longest: int = 512
    prompt_tokens: int = 32
    reading: Reading = field(default_factory=Reading)
    held_out_share: float = 1 / 48
    name: str = "files"

    def examples(self, part: int) -> Iterator[Example]:  # noqa: ARG002 - the same texts in each pass
        """All texts that are not held out."""
        return self._encoded(held=False)

    def held_out(self) -> Iterator[Example]:
        """The held-out texts."""
        return self._encoded(held=True)

    def prompts(self) -> Iterator[list[int]]:
        """The text before an answer, or the first tokens of a plain text."""
        while True:
            empty = True
            for prompt in self._starts(held=False):
                empty = False
                yield prompt
            if empty:
                raise ConfigError(f"no usable text in {', '.join(map(str, self.files))}")

    def held_out_prompts(self) -> Iterator[list[int]]:
        """The same of the held-out texts."""
        return self._starts(held=True)

    def _documents(self, *, held: bool) -> Iterator[Document]:
        for document in read_documents(self.files, self.reading):
            if (stable_hash("held-out", document.key) < self.held_out_share * 2**64) == held:
                yield document

    def _encoded(self, *, held: bool) -> Iterator[Example]:
        for document in self._documents(held=held):
            ids: list[int] = []
            learn: list[bool] = []
            for text, own in self._pieces(document):
                new = self.tokenizer.encode(text, add_special_tokens=not ids and not self.template).ids
                ids += new
                learn += [own] * len(new)
            for start in range(0, len(ids), self.longest):
                window = slice(start, start + self.longest)
                if len(ids[window]) > 1:
                    yield Example(np.array(ids[window], np.uint32), np.array(learn[window]))

    def _starts(self, *, held: bool) -> Iterator[list[int]]:
        for document in self._documents(held=held):
            ids: list[int] = []
            for text, own in self._pieces(document):
                new = self.tokenizer.encode(text, add_special_tokens=not ids and not self.template).ids
                if own and (ids or not document.messages):
                    yield ids or new[: self.prompt_tokens]
                ids += new
                if len(ids) > self.longest - 32:
                    break

    def _pieces(self, document: Document) -> list[tuple[str, bool]]:
        """(text, is it learned) pieces; of a chat, the assistant's answers are learned."""
        if not document.messages:
            return [(document.text, True)]
        if not self.template:
            raise ConfigError(
                f"{document.place} is a chat, and the tokenizer has no chat template",
                hint='add chat_template.jinja to the folder, or give plain texts as {"text": ...}',
            )
        return _rendered(self.template, document.messages)


def _rendered(template: str, messages: Sequence[dict[str, Any]]) -> list[tuple[str, bool]]:
    out: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message.get("role") != "assistant":
            continue
        before = render_chat(template, messages[:index])
        after = render_chat(template, messages[: index + 1], add_generation_prompt=False)
        if before.startswith(done) and after.startswith(before):
            out += [(before[len(done) :], False), (after[len(before) :], True)]
            done = after
    whole = render_chat(template, messages, add_generation_prompt=False)
    if not done or not whole.startswith(done):
        return [(whole, True)]  # a template that rewrites earlier turns: learn all of it
    return [*out, (whole[len(done) :], False)] if whole != done else out


@dataclass(frozen=True)
class NoSource:
    """No corpus: a model writes from its first token on. Validation takes texts that the target writes."""

    starts: tuple[tuple[int, ...], ...]
    name: str = "nothing"

    def examples(self, part: int) -> Iterator[Example]:  # noqa: ARG002 - there are none
        """None."""
        return iter(())

    def held_out(self) -> Iterator[Example]:
        """None."""
        return iter(())

    def prompts(self) -> Iterator[list[int]]:
        """The first token, again and again."""
        while True:
            for start in self.starts:
                yield list(start)

    def held_out_prompts(self) -> Iterator[list[int]]:
        """The first token; noise makes the texts differ."""
        return (list(start) for start in self.starts)


def take(prompts: Iterable[list[int]], count: int) -> list[list[int]]:
    """The first `count`."""
    return list(islice(prompts, count))
