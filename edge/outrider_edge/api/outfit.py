"""What the device wears: one pack, opened, with all that a request needs of it. A swap puts another in its place."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outrider_edge.api.token_text import Vocabulary
from outrider_shared.errors import PromptError

_HALF = re.compile("[\ud800-\udfff]")  # Python has pairs of them as one character

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from outrider_edge.device import Device


@dataclass(frozen=True)
class Outfit:
    """A device with one pack.

    Attributes:
        device: Answers.
        vocabulary: Bytes of its tokens.
        name: Of the pack.
        path: Where it lies.
        context_length: Positions that the draft was made for.
        vocabulary_size: Token ids that the pair has, from 0 on.
    """

    device: Device
    vocabulary: Vocabulary
    name: str
    path: Path
    context_length: int
    vocabulary_size: int

    @classmethod
    def of(cls, device: Device) -> Outfit:
        """The outfit of an opened device."""
        manifest = device.pack.manifest
        vocabulary = Vocabulary(device.tokenizer, manifest.eos_ids)
        shape = manifest.architecture
        return cls(device, vocabulary, manifest.name, device.pack.path, shape.context_length, shape.vocab_size)

    @property
    def chat_template(self) -> str:
        """Jinja text; empty for a model without chat."""
        return self.device.chat_template

    def encode(self, text: str, *, special: bool = True) -> tuple[int, ...]:
        """Token ids; a chat template writes special tokens itself, so they are not added for one.

        Raises:
            PromptError: if the text has half of a character.
        """
        if broken := _HALF.search(text):
            message = f"the text has half of a character, {broken[0]!r}, at place {broken.start()}"
            raise PromptError(message, hint="a text was cut inside of a surrogate pair: send whole characters")
        return tuple(self.device.tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of a prompt, special tokens included."""
        return b"".join(self.vocabulary.bytes_of(token) for token in tokens).decode(errors="replace")
