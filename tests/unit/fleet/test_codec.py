"""Messages to bytes and back: what is written is read again, and every malformed field is refused by name."""

from __future__ import annotations

import dataclasses
import math

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outrider_shared.errors import ProtocolError
from outrider_shared.fleet.codec import MAX_BYTES, decode, encode
from outrider_shared.fleet.desired import Assignment, Config, Desired, Window
from outrider_shared.fleet.messages import Info, PackRef, Presence, Telemetry, UpdateState, UpdateStatus

COUNTS = st.integers(0, (1 << 63) - 1)
TELEMETRY = st.builds(
    Telemetry,
    bd=COUNTS, seq=COUNTS, ts=st.floats(0, 1e10), window_s=st.floats(0, 1e4),
    active=st.builds(PackRef, target=st.text("abc/", min_size=1, max_size=20), sha256=st.just("0" * 64)),
    tried=st.lists(COUNTS, max_size=8).map(tuple), p95_ms=st.none() | st.floats(0, 1e6),
    temperature_c=st.none() | st.floats(-50, 150),
)  # fmt: skip


@given(TELEMETRY)
def test_a_message_comes_back_as_it_was(message: Telemetry):
    assert decode(Telemetry, encode(message)) == message


def test_nested_documents_come_back_as_they_were():
    document = Desired(
        "d1", 1, 7, 1e9, Config(window=Window(3600, 7200)), Assignment("r1", 2, "draft/int8/x.tar", "a" * 64), {"a": 1}
    )
    assert decode(Desired, encode(document)) == document


GOOD = {"v": 1, **dataclasses.asdict(Presence(True, 3, 5.0))}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"v": 2}, "schema version 2"),
        ({"v": True}, "schema version True"),
        ({"bd": None}, "Presence.bd is None"),
        ({"bd": "3"}, "Presence.bd is '3'"),
        ({"bd": True}, "Presence.bd is True"),
        ({"bd": -1}, "Presence.bd is -1"),
        ({"online": 1}, "Presence.online is 1"),
        ({"ts": math.nan}, "Presence.ts is nan"),
        ({"ts": math.inf}, "Presence.ts is inf"),
        ({"reason": ""}, "has length 0"),
        ({"reason": "x" * 200}, "has length 200"),
        ({"reason": {"a": 1}}, "Presence.reason"),
    ],
)
def test_a_malformed_field_is_refused_by_its_name(change, words):
    with pytest.raises(ProtocolError, match=words.replace("(", r"\(")):
        decode(Presence, msgpack.packb({**GOOD, **change}))


def test_a_missing_field_is_named_and_an_unknown_one_is_left_alone():
    fields = {key: value for key, value in GOOD.items() if key != "bd"}
    with pytest.raises(ProtocolError, match="has no bd"):
        decode(Presence, msgpack.packb(fields))
    assert decode(Presence, msgpack.packb({**GOOD, "newer": [1]})) == Presence(True, 3, 5.0)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes):
    for kind in (Presence, Telemetry, Desired, Info, UpdateStatus):
        with pytest.raises(ProtocolError):
            decode(kind, data)


@settings(max_examples=30)
@given(st.data())
def test_no_msgpack_raises_anything_but_a_protocol_error(data):
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    )
    names = st.sampled_from([field.name for field in dataclasses.fields(Telemetry)])
    fields = {"v": 1, **data.draw(st.dictionaries(names, values))}
    try:
        decode(Telemetry, msgpack.packb(fields))
    except ProtocolError:
        return


def test_an_oversized_message_is_refused_on_both_sides():
    with pytest.raises(ProtocolError, match="over"):
        decode(Presence, b"x" * (MAX_BYTES + 1))
    with pytest.raises(ProtocolError, match="over"):
        encode(Info(1, 1.0, "a", "b", "c", "d" * 64, PackRef("x"), labels={"k": "x" * MAX_BYTES}))


def test_trailing_bytes_are_refused():
    with pytest.raises(ProtocolError, match="not msgpack"):
        decode(Presence, encode(Presence(True, 1, 1.0)) + b"\xc0")


def test_an_unknown_state_is_refused():
    status = UpdateStatus("r", 1, "t", UpdateState.DOWNLOADING, 1, 1.0)
    fields = msgpack.unpackb(encode(status))
    with pytest.raises(ProtocolError, match="expected one of"):
        decode(UpdateStatus, msgpack.packb({**fields, "state": "exploded"}))
