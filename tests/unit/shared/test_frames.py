"""HTTP/2 frames are counted however the bytes are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outrider_shared.emulator.frames import PREFACE, FrameReader, FrameTallies


def frame(kind: int, size: int) -> bytes:
    return size.to_bytes(3, "big") + bytes([kind, 0, 0, 0, 0, 1]) + bytes(size)


@given(st.lists(st.tuples(st.sampled_from([0, 4, 6, 8]), st.integers(0, 40)), max_size=8), st.data())
def test_all_frames_are_counted_whatever_the_cuts(frames, data):
    """Frames and bytes of each kind add up to what was sent, the preface aside."""
    stream = PREFACE + b"".join(frame(*one) for one in frames)
    tallies, at = FrameTallies(), 0
    reader = FrameReader(tallies.up, preface=True)
    while at < len(stream):
        size = data.draw(st.integers(1, 30))
        reader.feed(stream[at : at + size])
        at += size
    assert sum(tally.frames for tally in tallies.up.values()) == len(frames)
    assert sum(tally.bytes for tally in tallies.up.values()) == len(stream) - len(PREFACE)
    assert tallies.up["data"].frames == sum(kind == 0 for kind, _ in frames)


def test_what_is_no_http2_is_not_counted():
    """A TLS hello says nothing of frames."""
    tallies = FrameTallies()
    reader = FrameReader(tallies.up, preface=True)
    reader.feed(b"\x16\x03\x01" + bytes(200))
    assert reader.opaque
    assert tallies.as_dict() == {"up": {}, "down": {}}
