"""How a prompt becomes bytes: packed ids, zstandard, or zstandard with the tokenizer's dictionary, whichever is least.

zstandard sees ids as little-endian integers of 16 bits (vocabularies of up to 65,536) or 32: words that repeat are
bytes that repeat. Its frames carry no magic number, no length and no checksum; the number of tokens is known from the
message, and no more than that is ever unpacked, whatever a frame claims.
"""

from __future__ import annotations

import functools
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import zstandard

from outrider_shared.errors import ProtocolError
from outrider_shared.packing import pack_tokens, unpack_tokens
from outrider_wire.v1 import verifier_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEVEL = 12
# A frame that wants more history than this is refused; prompts are far smaller.
_WINDOW_BYTES = 1 << 20


def dictionary_path(tokenizer_sha256: str) -> Path:
    """Where the dictionary for a tokenizer (fingerprint in hex) lies, if there is one."""
    return Path(str(files("outrider_shared") / "bundled" / f"tokens-{tokenizer_sha256[:16]}.zdict"))


def token_bytes(tokens: Sequence[int], vocabulary: int) -> bytes:
    """Ids as zstandard sees them."""
    return np.asarray(tokens, _width(vocabulary)).tobytes()


def encode_tokens(
    tokens: Sequence[int], vocabulary: int, tokenizer_sha256: str
) -> tuple[pb.TokenCoding.ValueType, bytes]:
    """The smallest form of token ids, each in [0, vocabulary)."""
    best: pb.TokenCoding.ValueType = pb.TOKEN_CODING_PACKED
    data = pack_tokens(tokens, vocabulary)
    plain = token_bytes(tokens, vocabulary)
    for coding in (pb.TOKEN_CODING_ZSTD, pb.TOKEN_CODING_ZSTD_DICT):
        dictionary = _dictionary(tokenizer_sha256) if coding == pb.TOKEN_CODING_ZSTD_DICT else None
        if not tokens or (coding == pb.TOKEN_CODING_ZSTD_DICT and dictionary is None):
            continue
        packed = _compressor(dictionary).compress(plain)
        # The field that says so takes three bytes.
        if len(packed) + 3 < len(data):
            best, data = coding, packed
    return best, data


def decode_tokens(
    data: bytes, count: int, vocabulary: int, coding: pb.TokenCoding.ValueType, tokenizer_sha256: str
) -> tuple[int, ...]:
    """The inverse of `encode_tokens`; the caller has bounded `count`.

    Raises:
        ProtocolError: if the bytes are not exactly `count` ids of the vocabulary in that form.
    """
    if coding == pb.TOKEN_CODING_PACKED:
        return tuple(unpack_tokens(data, count, vocabulary))
    dictionary = _dictionary(tokenizer_sha256) if coding == pb.TOKEN_CODING_ZSTD_DICT else None
    if coding not in {pb.TOKEN_CODING_ZSTD, pb.TOKEN_CODING_ZSTD_DICT} or (
        coding == pb.TOKEN_CODING_ZSTD_DICT and dictionary is None
    ):
        raise ProtocolError(f"token coding {coding} is unknown here", hint="update the older side")
    width = _width(vocabulary)
    size = count * width.itemsize
    try:
        with _decompressor(dictionary).stream_reader(data) as reader:
            plain = reader.read(size + 1)
    except zstandard.ZstdError as error:
        raise ProtocolError(f"the compressed tokens are damaged: {error}") from error
    if len(plain) != size:
        raise ProtocolError(f"{count} tokens take {size} bytes, the compressed ones have {len(plain)} or more")
    ids = np.frombuffer(plain, width)
    if count and int(ids.max()) >= vocabulary:
        raise ProtocolError(f"token id {int(ids.max())} is outside the vocabulary of {vocabulary}")
    return tuple(ids.tolist())


def _width(vocabulary: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


@functools.cache
def _dictionary(tokenizer_sha256: str) -> zstandard.ZstdCompressionDict | None:
    path = dictionary_path(tokenizer_sha256)
    if not path.is_file():
        return None
    return zstandard.ZstdCompressionDict(path.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT)


def _compressor(dictionary: zstandard.ZstdCompressionDict | None) -> zstandard.ZstdCompressor:
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL,
        format=zstandard.FORMAT_ZSTD1_MAGICLESS,
        write_checksum=False,
        write_content_size=False,
        write_dict_id=False,
    )
    return zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters)


def _decompressor(dictionary: zstandard.ZstdCompressionDict | None) -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor(
        dict_data=dictionary, max_window_size=_WINDOW_BYTES, format=zstandard.FORMAT_ZSTD1_MAGICLESS
    )
