"""Desired state: only what the service signed, for this device, and never an older one."""

from __future__ import annotations

import dataclasses

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from outrider_edge.agent.kept import Kept
from outrider_shared.errors import ConflictError, OutriderError, ProtocolError, ReplayError, SignatureError
from outrider_shared.fleet.codec import encode
from outrider_shared.fleet.desired import PURPOSE, Applied, Config, Desired, accept, sign
from outrider_shared.fleet.signed import Signer, Trust
from outrider_shared.ids import DeviceId

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
OTHER = Signer(Ed25519PrivateKey.from_private_bytes(bytes([1] * 32)))
TRUST = Trust([SIGNER.public_key])
ME = DeviceId("d1")


def document(epoch: int, version: int, **changes) -> Desired:
    return Desired(ME, epoch, version, 1e9, **changes)


def test_a_new_document_is_applied_and_the_same_one_again_is_nothing_to_do():
    payload = sign(SIGNER, document(1, 1))
    found, applied = accept(TRUST, ME, Applied(), payload)
    assert found == document(1, 1)
    assert accept(TRUST, ME, applied, payload) is None


def test_an_older_document_is_a_replay():
    _, applied = accept(TRUST, ME, Applied(), sign(SIGNER, document(1, 5)))
    with pytest.raises(ReplayError, match="older"):
        accept(TRUST, ME, applied, sign(SIGNER, document(1, 4)))


def test_a_restored_registry_may_begin_its_versions_again_in_a_new_epoch():
    _, applied = accept(TRUST, ME, Applied(), sign(SIGNER, document(1, 50)))
    found, _ = accept(TRUST, ME, applied, sign(SIGNER, document(2, 1)))
    assert found.epoch == 2
    with pytest.raises(ReplayError):
        accept(TRUST, ME, Applied(2, 1, "x"), sign(SIGNER, document(1, 51)))


def test_the_same_number_with_another_content_is_a_conflict():
    _, applied = accept(TRUST, ME, Applied(), sign(SIGNER, document(1, 1)))
    with pytest.raises(ConflictError):
        accept(TRUST, ME, applied, sign(SIGNER, document(1, 1, config=Config(telemetry_s=1.0))))


def test_a_document_of_another_device_or_key_or_purpose_is_refused():
    with pytest.raises(SignatureError, match="'d2' came to 'd1'"):
        accept(TRUST, ME, Applied(), sign(SIGNER, dataclasses.replace(document(1, 1), device="d2")))
    with pytest.raises(SignatureError, match="does not trust"):
        accept(TRUST, ME, Applied(), sign(OTHER, document(1, 1)))
    with pytest.raises(SignatureError, match="signed as 'command'"):
        accept(TRUST, ME, Applied(), SIGNER.sign("command", document(1, 1)))


@given(st.data())
def test_no_altered_bit_passes(data):
    payload = bytearray(sign(SIGNER, document(1, 1)))
    place = data.draw(st.integers(0, len(payload) - 1))
    payload[place] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises((SignatureError, ProtocolError)):
        accept(TRUST, ME, Applied(), bytes(payload))


def test_two_keys_may_be_trusted_while_one_is_replaced():
    both = Trust([SIGNER.public_key, OTHER.public_key])
    for signer in (SIGNER, OTHER):
        assert both.open(PURPOSE, Desired, sign(signer, document(1, 1))) == document(1, 1)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=12))
def test_in_any_order_of_arrival_the_number_only_grows(numbers):
    applied = Applied()
    for epoch, version in numbers:
        before = (applied.epoch, applied.version)
        try:
            result = accept(TRUST, ME, applied, sign(SIGNER, document(epoch, version)))
        except OutriderError:
            assert (epoch, version) < before
            continue
        if result is not None:
            applied = result[1]
            assert (applied.epoch, applied.version) >= before


def test_a_document_that_cannot_be_read_any_more_is_taken_again_and_an_older_one_is_not():
    """A newer program may refuse what an older one kept; numbers outlive that."""
    kept = Kept(7)
    for version in (1, 2):
        kept.desired, kept.applied = accept(TRUST, ME, kept.applied, sign(SIGNER, document(1, version)))
    assert Kept.read(kept.to_json()) == kept
    damaged = Kept.read(kept.to_json().replace(encode(kept.desired).hex().encode(), b"ff00"))
    assert (damaged.bd, damaged.desired, damaged.applied.version) == (7, None, 2)
    with pytest.raises(ReplayError):
        accept(TRUST, ME, damaged.applied, sign(SIGNER, document(1, 1)))
    assert accept(TRUST, ME, damaged.applied, sign(SIGNER, kept.desired))[0] == kept.desired
    for nothing in (None, b"", b"[]", b"{", b'{"bd": []}'):
        assert Kept.read(nothing) == Kept()
