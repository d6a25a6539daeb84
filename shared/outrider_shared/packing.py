"""How token ids and tree parents are packed into bytes.

Token ids take ceil(log2 vocabulary) bits each, least significant bit first; parents are unsigned LEB128 varints.
Reading is strict: a wrong length, a set fill bit or an id outside the vocabulary is an error, never a guess.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from outrider_shared.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

# 64 ids of any width end on a byte border, so a long prompt is packed in pieces of linear cost.
_PIECE = 64
_VARINT_BYTES = 5


def token_bits(vocabulary: int) -> int:
    """Bits of one token id: ceil(log2 vocabulary), at least 1."""
    return max(1, (vocabulary - 1).bit_length())


def packed_size(count: int, vocabulary: int) -> int:
    """Bytes that `count` packed token ids take."""
    return -(-count * token_bits(vocabulary) // 8)


def pack_tokens(tokens: Sequence[int], vocabulary: int) -> bytes:
    """Pack token ids, each in [0, vocabulary)."""
    bits = token_bits(vocabulary)
    out = bytearray()
    for start in range(0, len(tokens), _PIECE):
        piece = tokens[start : start + _PIECE]
        value = 0
        for i, token in enumerate(piece):
            value |= token << (i * bits)
        out += value.to_bytes(packed_size(len(piece), vocabulary), "little")
    return bytes(out)


def unpack_tokens(data: bytes, count: int, vocabulary: int) -> list[int]:
    """The inverse of `pack_tokens`.

    Raises:
        ProtocolError: if the bytes are not exactly `count` packed ids, or an id is outside the vocabulary.
    """
    if len(data) != packed_size(count, vocabulary):
        expected = packed_size(count, vocabulary)
        raise ProtocolError(f"{count} packed tokens take {expected} bytes, got {len(data)}")
    bits, out = token_bits(vocabulary), []
    mask = (1 << bits) - 1
    for start in range(0, count, _PIECE):
        size = min(_PIECE, count - start)
        offset = start * bits // 8
        value = int.from_bytes(data[offset : offset + packed_size(size, vocabulary)], "little")
        for _ in range(size):
            out.append(value & mask)
            value >>= bits
        if value:
            raise ProtocolError("the fill bits behind the packed tokens are not zero")
    worst = max(out, default=0)
    if worst >= vocabulary:
        raise ProtocolError(f"token id {worst} is outside the vocabulary of {vocabulary}")
    return out


def pack_varints(values: Sequence[int]) -> bytes:
    """Unsigned LEB128, one value after the other."""
    out = bytearray()
    for number in values:
        value = number
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out)


def unpack_varints(data: bytes, count: int) -> list[int]:
    """The inverse of `pack_varints`.

    Raises:
        ProtocolError: if the bytes are not exactly `count` varints of at most 5 bytes.
    """
    out: list[int] = []
    value = shift = 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            out.append(value)
            value = shift = 0
        elif shift >= 7 * _VARINT_BYTES:
            raise ProtocolError(f"a varint is longer than {_VARINT_BYTES} bytes")
    if shift or len(out) != count:
        raise ProtocolError(f"expected {count} varints, found {len(out)}{' and a torn one' if shift else ''}")
    return out
