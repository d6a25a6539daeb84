"""Token ids to text, exactly: each token is a run of bytes, and a character appears when its last byte is there.

Rules:
    * The text of an answer is the UTF-8 of its tokens' bytes; bytes that are no UTF-8 become U+FFFD, as in a decoder
      that sees all of them at once. How tokens are grouped into messages changes nothing.
    * Control tokens (special ones, and the model's end tokens) have no bytes, unless the caller wants to see them.

What it does not do: cut at stop strings (`stops.py`).
"""

from __future__ import annotations

import codecs
import functools
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_START = "\u2581"  # sentencepiece's mark of a space


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes (`bytes_to_unicode` of its encoder), turned around."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _parts(decoder: Any) -> Iterable[dict[str, Any]]:
    if isinstance(decoder, dict):
        yield decoder
        for inner in decoder.get("decoders") or ():
            yield from _parts(inner)


class Vocabulary:
    """The bytes of every token of a tokenizer.

    Args:
        tokenizer: Of the pack.
        ends: Token ids that end a text; they have no bytes.

    Attributes:
        control: Ids without bytes.
    """

    def __init__(self, tokenizer: Tokenizer, ends: Iterable[int] = ()) -> None:
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self._literal = {id_: token.content for id_, token in added.items()}
        self.control = frozenset(id_ for id_, token in added.items() if token.special) | frozenset(ends)
        self._kinds = {part.get("type") for part in _parts(json.loads(tokenizer.to_str()).get("decoder"))}
        self._bytes: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """The token's bytes, control tokens by their name; empty for an id that the tokenizer does not have."""
        if token not in self._bytes:
            self._bytes[token] = self._compute(token)
        return self._bytes[token]

    def text_of(self, token: int) -> str:
        """The token alone, as something to show: bytes that are no whole character as their numbers."""
        raw = self.bytes_of(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def controls(self, names: Iterable[str]) -> frozenset[int]:
        """Control tokens that are spelled like one of the names."""
        return frozenset(id_ for _, id_ in self.added(names)) & self.control

    def added(self, names: Iterable[str]) -> tuple[tuple[str, int], ...]:
        """(spelling, id) of the tokens beside the learned ones that are spelled like one of the names."""
        wanted = set(names)
        return tuple((name, id_) for id_, name in sorted(self._literal.items()) if name in wanted)

    def _compute(self, token: int) -> bytes:
        if token in self._literal:
            return self._literal[token].encode()
        piece = self._tokenizer.id_to_token(token)
        if piece is None:
            return b""
        if "ByteLevel" in self._kinds:
            table = _byte_of_character()
            return bytes(table[character] for character in piece) if all(c in table for c in piece) else piece.encode()
        if "ByteFallback" in self._kinds and (match := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(match[1], 16)])
        if self._kinds & {"Metaspace", "Replace", "ByteFallback"}:
            return piece.replace(_WORD_START, " ").encode()
        return self._tokenizer.decode([token], skip_special_tokens=False).encode()


class TextStream:
    """One answer's tokens in, its text out.

    Args:
        vocabulary: Bytes of tokens.
        shown: Control tokens to show all the same.
    """

    def __init__(self, vocabulary: Vocabulary, shown: frozenset[int] = frozenset()) -> None:
        self._vocabulary = vocabulary
        self._hidden = vocabulary.control - shown
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that this token completed."""
        return "" if token in self._hidden else self._decoder.decode(self._vocabulary.bytes_of(token))

    def flush(self) -> str:
        """What the open bytes at the end come to."""
        return self._decoder.decode(b"", final=True)

    def hides(self, token: int) -> bool:
        """Whether the token is not part of the text."""
        return token in self._hidden
