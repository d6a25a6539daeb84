"""Blocks: what goes in comes out, and nothing of it shows in their size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.errors import ConfigError, ProtocolError
from outrider_shared.padding import BlockReader, BlockWriter, Padding
from outrider_wire.v1 import verifier_pb2 as pb

MESSAGES = st.lists(st.binary(min_size=1, max_size=700), max_size=12)


@given(MESSAGES, st.integers(64, 400))
def test_messages_come_out_of_blocks_of_one_size_as_they_went_in(messages, size):
    writer, reader, found = BlockWriter(Padding(block_bytes=size)), BlockReader(1 << 20), []
    for message in messages:
        writer.put(message)
    writer.put(b"")
    while not reader.ended:
        block = writer.next()
        assert len(block) == size
        found += reader.feed(block)
    assert found == messages
    assert reader.feed(writer.next()) == []


@given(st.binary(min_size=1, max_size=5000), st.binary(min_size=1, max_size=5000))
def test_an_opening_tells_its_class_and_nothing_more(first, second):
    """Two openings of one class have blocks of one size, in one piece; the blocks after them are small again."""

    def blocks(message):
        writer = BlockWriter(Padding())
        writer.put(message, whole=True)
        return len(writer.next()), writer.waiting, len(writer.next())

    (size, left, after), (other, *_) = blocks(first), blocks(second)
    assert (left, after) == (0, Padding().block_bytes)
    classes = (1024, 4096, 16384)
    assert size == min(c for c in classes if c >= len(first) + 4 + (1 if len(first) < 128 else 2))
    assert (size == other) or min(len(first), len(second)) <= min(size, other)


@given(st.binary(max_size=300))
def test_bytes_that_are_no_block_are_refused_or_read_never_more(data):
    reader = BlockReader(1000)
    try:
        messages = reader.feed(data)
    except ProtocolError:
        return
    assert sum(map(len, messages)) <= len(data)


def test_a_message_beyond_the_bound_is_refused_before_it_is_there():
    writer = BlockWriter(Padding())
    writer.put(bytes(2000))
    with pytest.raises(ProtocolError, match="2000 bytes"):
        BlockReader(1999).feed(writer.next())


@pytest.mark.parametrize(("text", "expected"), [
    ("off", None), ("", None), ("on", Padding()), ("128/40ms", Padding(128, 0.04)), ("512/7.5ms", Padding(512, 0.0075)),
])  # fmt: skip
def test_settings_are_read(text, expected):
    assert Padding.parse(text) == expected


@pytest.mark.parametrize("text", ["yes", "32/20ms", "256/1ms", "256/2000ms", "256", "256/20"])
def test_settings_that_mean_nothing_are_refused(text):
    with pytest.raises(ConfigError, match="padding"):
        Padding.parse(text)


def test_a_rule_survives_the_wire_and_one_out_of_bounds_does_not():
    assert Padding.from_wire(Padding(320, 0.03, 3.0).to_wire()) == Padding(320, 0.03, 3.0)
    for rule in (
        pb.PaddingRule(),
        pb.PaddingRule(block_bytes=1 << 20, interval_us=20_000, round_blocks=1),
        pb.PaddingRule(block_bytes=256, interval_us=1, round_blocks=1),
        pb.PaddingRule(block_bytes=256, interval_us=20_000, round_blocks=1 << 30),
    ):
        with pytest.raises(ProtocolError, match="padding"):
            Padding.from_wire(rule)
