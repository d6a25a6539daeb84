"""Prompts as bytes: every form reads back, the smallest is taken, and frames that lie are refused."""

from __future__ import annotations

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared import coding
from outrider_shared.coding import decode_tokens, encode_tokens, token_bytes
from outrider_shared.errors import ProtocolError
from outrider_shared.packing import packed_size
from outrider_wire.v1 import verifier_pb2 as pb

NOBODY = "00" * 32


@given(st.sampled_from([97, 4096, 65536, 65537, 151936]), st.data())
def test_what_is_encoded_reads_back_and_is_never_larger_than_packed(vocabulary, data):
    tokens = data.draw(st.lists(st.integers(0, vocabulary - 1), max_size=200))
    form, encoded = encode_tokens(tokens, vocabulary, NOBODY)
    assert decode_tokens(encoded, len(tokens), vocabulary, form, NOBODY) == tuple(tokens)
    assert len(encoded) <= packed_size(len(tokens), vocabulary)


def test_text_that_repeats_is_compressed():
    tokens = [*range(100, 140)] * 20
    form, encoded = encode_tokens(tokens, 4096, NOBODY)
    assert form == pb.TOKEN_CODING_ZSTD
    assert len(encoded) < packed_size(len(tokens), 4096) / 4


def frame(plain: bytes) -> bytes:
    return coding._compressor(None).compress(plain)


REFUSED = {
    "more tokens than told": (frame(token_bytes([1] * 9, 4096)), 8),
    "fewer": (frame(token_bytes([1] * 7, 4096)), 8),
    "outside of the vocabulary": (frame(token_bytes([1] * 7 + [4096], 4096)), 8),
    "a bomb": (frame(bytes(1 << 26)), 8),
    "no frame": (b"\xff" * 12, 8),
    "nothing": (b"", 8),
    "a torn frame": (frame(token_bytes([*range(200)], 4096))[:-20], 200),
    "with magic and a claimed size": (zstandard.ZstdCompressor().compress(token_bytes([1] * 8, 4096)), 8),
}


@pytest.mark.parametrize("name", REFUSED)
def test_frames_that_lie_are_refused(name):
    data, count = REFUSED[name]
    with pytest.raises(ProtocolError):
        decode_tokens(data, count, 4096, pb.TOKEN_CODING_ZSTD, NOBODY)


def test_a_frame_that_claims_a_huge_size_allocates_nothing():
    """The header may promise 2^60 bytes; nobody makes room for them."""
    # Frame header: 8-byte content size, no checksum, no window (single segment); then an empty last block.
    claim = bytes([0b1110_0000]) + (1 << 60).to_bytes(8, "little") + bytes([1, 0, 0])
    with pytest.raises(ProtocolError):
        decode_tokens(claim, 8, 4096, pb.TOKEN_CODING_ZSTD, NOBODY)


@pytest.mark.parametrize("form", [2, 7])
def test_a_form_that_is_not_known_here_is_refused(form):
    with pytest.raises(ProtocolError, match="coding"):
        decode_tokens(b"x", 1, 4096, form, NOBODY)
