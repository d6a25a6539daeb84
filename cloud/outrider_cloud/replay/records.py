"""One answer's refused drafts, and how they are written down.

A record has the tokens once, however many of its places were refused, and names neither device nor session. What the
target chose at a place is the token there.

    frame      length uint32, crc32 uint32 (both little-endian, of the payload), payload
    payload    msgpack; the first frame of a segment is its Header, every other one a Record
    tokens     packed at ceil(log2 vocabulary) bits, as on the wire
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import astuple, dataclass
from typing import Any

import msgpack

from outrider_cloud.engine.events import Refused
from outrider_shared.errors import OutriderError, StorageError
from outrider_shared.packing import pack_tokens, unpack_tokens

FORMAT = 1
FRAME = struct.Struct("<II")
MOST_BYTES = 1 << 20  # of a payload: a damaged length must not ask for all memory


@dataclass(frozen=True)
class Header:
    """What all records of a segment have in common.

    Attributes:
        target: Fingerprint of the target whose choices these are, hex.
        tokenizer: Fingerprint of the tokenizer, hex.
        vocabulary: Token ids.
        model: The target's name, for people.
        created_s: Unix time of the first record.
        expires_s: Unix time from which on nobody may read it.
    """

    target: str
    tokenizer: str
    vocabulary: int
    model: str
    created_s: float
    expires_s: float
    format: int = FORMAT


@dataclass(frozen=True)
class Record:
    """One answer.

    Attributes:
        tokens: The end of the prompt, and the answer up to its last refused place.
        answer_start: Index in `tokens` from which on the target chose.
        refused: Places, as indices in `tokens`, ascending.
        temperature: At which the answer was sampled.
    """

    tokens: tuple[int, ...]
    answer_start: int
    refused: tuple[Refused, ...]
    temperature: float


def frame(payload: bytes) -> bytes:
    """A payload with its length and checksum."""
    return FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def header_bytes(header: Header) -> bytes:
    """A segment's first frame."""
    return frame(msgpack.packb(astuple(header)))


def record_bytes(record: Record, header: Header) -> bytes:
    """A record's frame in a segment of that header."""
    places = [[each.position, list(each.drafted)] for each in record.refused]
    tokens = pack_tokens(record.tokens, header.vocabulary)
    return frame(msgpack.packb([len(record.tokens), tokens, record.answer_start, places, float(record.temperature)]))


def read_header(payload: bytes) -> Header:
    """The inverse of `header_bytes`, without its frame. Raises StorageError."""
    try:
        fields: list[Any] = msgpack.unpackb(payload)
        header = Header(*fields)
        if header.format != FORMAT or not 1 <= header.vocabulary < 1 << 31:
            raise StorageError(f"format {header.format!r} with {header.vocabulary!r} tokens is not known here")
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise StorageError(f"no header of a segment: {error}") from error
    return header


def read_record(payload: bytes, header: Header) -> Record:
    """The inverse of `record_bytes`, without its frame. Raises StorageError."""
    try:
        count, packed, answer_start, places, temperature = msgpack.unpackb(payload)
        tokens = tuple(unpack_tokens(packed, count, header.vocabulary))
        refused = tuple(Refused(position, tuple(drafted)) for position, drafted in places)
        if not all(answer_start <= each.position < count for each in refused):
            raise ValueError(f"places {[each.position for each in refused]} in {count} tokens")
        return Record(tokens, answer_start, refused, float(temperature))
    except (ValueError, TypeError, msgpack.UnpackException, OutriderError) as error:
        raise StorageError(f"no record: {error}") from error
