"""Documents that the service signs for one device: Ed25519 over a purpose, so one kind never passes for another.

An envelope is msgpack {v, purpose, body, key, sig}: `body` the encoded document, `key` the first 16 hex digits of the
public key's sha256, `sig` over "outrider:", the purpose, a line feed and the body. Several public
keys may be trusted at a time, so that a key can be replaced without a gap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from outrider_shared.errors import SignatureError
from outrider_shared.fleet.codec import MAX_BYTES, Bound, decode, encode
from outrider_shared.fleet.messages import Name

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A signed document on the wire."""

    purpose: Name
    body: Annotated[bytes, Bound(1, MAX_BYTES)]
    key: Annotated[str, Bound(16, 16)]
    sig: Annotated[bytes, Bound(64, 64)]


def key_id(key: Ed25519PublicKey) -> str:
    """Short name of a public key."""
    return hashlib.sha256(key.public_bytes(Encoding.Raw, PublicFormat.Raw)).hexdigest()[:16]


class Signer:
    """Signs for the service."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._id = key_id(key.public_key())

    @property
    def public_key(self) -> Ed25519PublicKey:
        """What devices trust."""
        return self._key.public_key()

    def sign(self, purpose: str, document: object) -> bytes:
        """The envelope of a document."""
        body = encode(document)
        return encode(Envelope(purpose, body, self._id, self._key.sign(_signed(purpose, body))))


class Trust:
    """The public keys that a device believes."""

    def __init__(self, keys: Iterable[Ed25519PublicKey]) -> None:
        self._keys = {key_id(key): key for key in keys}

    def open(self, purpose: str, kind: type[T], data: bytes) -> T:
        """Check an envelope and read its document.

        Raises:
            ProtocolError: if envelope or document is malformed.
            SignatureError: if the purpose is another, the key is not trusted, or the signature does not fit.
        """
        envelope = decode(Envelope, data)
        if envelope.purpose != purpose:
            raise SignatureError(f"a document signed as {envelope.purpose!r} came as {purpose!r}")
        key = self._keys.get(envelope.key)
        if key is None:
            raise SignatureError(f"{purpose} is signed by key {envelope.key}, which this device does not trust")
        try:
            key.verify(envelope.sig, _signed(purpose, envelope.body))
        except InvalidSignature:
            raise SignatureError(f"{purpose} was altered: the signature of key {envelope.key} does not fit") from None
        return decode(kind, envelope.body)


def _signed(purpose: str, body: bytes) -> bytes:
    return b"outrider:" + purpose.encode() + b"\n" + body
