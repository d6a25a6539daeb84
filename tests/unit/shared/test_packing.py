"""Packing: what goes in comes out, in exactly the promised number of bytes, and nothing else is read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.errors import ProtocolError
from outrider_shared.packing import (
    pack_tokens,
    pack_varints,
    packed_size,
    token_bits,
    unpack_tokens,
    unpack_varints,
)

VOCABULARIES = st.one_of(st.integers(1, 70), st.sampled_from([2**k + d for k in range(7, 21) for d in (-1, 0, 1)]))


@st.composite
def tokens_of_a_vocabulary(draw: st.DrawFn) -> tuple[list[int], int]:
    vocabulary = draw(VOCABULARIES)
    ids = st.one_of(st.integers(0, vocabulary - 1), st.just(vocabulary - 1))
    # Around 64 the packer goes from one piece to the next.
    size = draw(st.one_of(st.integers(0, 9), st.sampled_from([63, 64, 65, 127, 128, 129, 200])))
    return draw(st.lists(ids, min_size=size, max_size=size)), vocabulary


@pytest.mark.parametrize(
    ("vocabulary", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (4096, 12), (151936, 18)]
)
def test_a_token_takes_the_rounded_up_logarithm_of_the_vocabulary(vocabulary: int, bits: int):
    assert token_bits(vocabulary) == bits
    assert vocabulary == 1 or bits == math.ceil(math.log2(vocabulary))


@given(tokens_of_a_vocabulary())
def test_packed_tokens_come_back(case: tuple[list[int], int]):
    tokens, vocabulary = case
    data = pack_tokens(tokens, vocabulary)
    assert len(data) == packed_size(len(tokens), vocabulary) == -(-len(tokens) * token_bits(vocabulary) // 8)
    assert unpack_tokens(data, len(tokens), vocabulary) == tokens


@given(tokens_of_a_vocabulary())
def test_packed_tokens_are_one_little_endian_number(case: tuple[list[int], int]):
    """Least significant bit first, whatever the piece size of the implementation."""
    tokens, vocabulary = case
    value = sum(token << (i * token_bits(vocabulary)) for i, token in enumerate(tokens))
    assert pack_tokens(tokens, vocabulary) == value.to_bytes(packed_size(len(tokens), vocabulary), "little")


def test_the_layout_of_the_bits_is_fixed():
    assert pack_tokens([0x123, 0x456, 0x789], 4096) == bytes([0x23, 0x61, 0x45, 0x89, 0x07])


@given(tokens_of_a_vocabulary(), st.integers(-3, 3).filter(bool))
def test_a_wrong_length_is_refused(case: tuple[list[int], int], change: int):
    tokens, vocabulary = case
    data = pack_tokens(tokens, vocabulary)
    other = data[:change] if change < 0 else data + bytes(change)
    if len(other) != len(data):
        with pytest.raises(ProtocolError, match="bytes"):
            unpack_tokens(other, len(tokens), vocabulary)


@given(tokens_of_a_vocabulary(), st.data())
def test_a_set_fill_bit_is_refused(case: tuple[list[int], int], data: st.DataObject):
    tokens, vocabulary = case
    used = len(tokens) * token_bits(vocabulary)
    packed = bytearray(pack_tokens(tokens, vocabulary))
    if used % 8:
        packed[-1] |= 1 << data.draw(st.integers(used % 8, 7))
        with pytest.raises(ProtocolError, match="fill bits"):
            unpack_tokens(bytes(packed), len(tokens), vocabulary)


@given(st.integers(2, 5000), st.integers(0, 150), st.integers(0, 150))
def test_an_id_outside_the_vocabulary_is_refused_wherever_it_stands(vocabulary: int, before: int, after: int):
    wide = 1 << token_bits(vocabulary)
    if vocabulary < wide:
        tokens = [0] * before + [vocabulary] + [vocabulary - 1] * after
        with pytest.raises(ProtocolError, match=f"token id {vocabulary} is outside"):
            unpack_tokens(pack_tokens(tokens, wide), len(tokens), vocabulary)


@given(st.binary(max_size=60), st.integers(0, 80), VOCABULARIES)
def test_arbitrary_bytes_are_read_exactly_or_refused(data: bytes, count: int, vocabulary: int):
    try:
        tokens = unpack_tokens(data, count, vocabulary)
    except ProtocolError:
        return
    assert len(tokens) == count
    assert pack_tokens(tokens, vocabulary) == data


def test_a_huge_count_costs_no_memory():
    with pytest.raises(ProtocolError):
        unpack_tokens(b"abc", 2**32 - 1, 4096)


@given(st.lists(st.one_of(st.integers(0, 300), st.integers(0, 2**35 - 1)), max_size=40))
def test_varints_come_back(values: list[int]):
    data = pack_varints(values)
    assert len(data) == sum(max(1, -(-value.bit_length() // 7)) for value in values)
    assert unpack_varints(data, len(values)) == values


@pytest.mark.parametrize(
    ("value", "data"),
    [(0, b"\0"), (1, b"\1"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2"), (16384, b"\x80\x80\1")],
)
def test_varints_are_leb128(value: int, data: bytes):
    assert pack_varints([value]) == data


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"", 1),
        (b"\1\1", 1),
        (b"\1", 2),
        (b"\x80", 1),  # torn
        (b"\1\x80", 1),  # torn behind the last
        (b"\x80\x80\x80\x80\x80\1", 1),  # six bytes
        (b"\xff" * 30, 1),
        (b"\1", 0),
    ],
)
def test_malformed_varints_are_refused(data: bytes, count: int):
    with pytest.raises(ProtocolError, match="varint"):
        unpack_varints(data, count)


@given(st.binary(max_size=40), st.integers(0, 40))
def test_arbitrary_bytes_are_varints_or_refused(data: bytes, count: int):
    try:
        values = unpack_varints(data, count)
    except ProtocolError:
        return
    assert len(values) == count
    assert all(0 <= value < 2**35 for value in values)
