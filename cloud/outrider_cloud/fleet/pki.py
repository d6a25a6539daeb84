"""Certificates of a fleet: one authority, one certificate per server and device, keys on EC P-256.

A development authority: its key lies in the fleet's folder. A fleet with an authority of its own puts its files in
the same places; all that the product asks of a device's certificate is that the CN is its name and that clients may
use it.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Sequence

_AUTHORITY_DAYS = 3650
_LEAF_DAYS = 825
_SKEW = dt.timedelta(hours=1)  # clocks of devices are often behind


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: bytes
    key: bytes


def new_authority(name: str) -> Pair:
    """A self-signed authority that may sign leaves only."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return _pair(builder.sign(key, hashes.SHA256()), key)


def new_server(authority: Pair, name: str, hosts: Sequence[str]) -> Pair:
    """A server's certificate for these host names and addresses."""
    names = [_general_name(host) for host in hosts]
    return _leaf(authority, name, ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName(names))


def new_client(authority: Pair, name: str) -> Pair:
    """A client's certificate: the CN is who it is."""
    return _leaf(authority, name, ExtendedKeyUsageOID.CLIENT_AUTH, None)


def new_revocations(authority: Pair, before: bytes = b"", revoked: Sequence[bytes] = ()) -> bytes:
    """A revocation list, PEM: what stood in `before`, and these certificates (PEM).

    It is valid as long as the authority: a list that ran out would shut out everybody.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    known = list(x509.load_pem_x509_crl(before)) if before else []
    now = dt.datetime.now(dt.UTC)
    fresh = [
        x509.RevokedCertificateBuilder(x509.load_pem_x509_certificate(one).serial_number, now).build()
        for one in revoked
    ]
    builder = (
        x509.CertificateRevocationListBuilder(issuer.subject, revoked_certificates=[*known, *fresh])
        .last_update(now - _SKEW)
        .next_update(issuer.not_valid_after_utc)
        .add_extension(x509.CRLNumber(len(known) + len(fresh) + 1), critical=False)
    )
    return builder.sign(_signing_key(authority), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def serial(certificate: bytes) -> str:
    """The serial number of a certificate (PEM), in hex."""
    return f"{x509.load_pem_x509_certificate(certificate).serial_number:x}"


def _signing_key(authority: Pair) -> ec.EllipticCurvePrivateKey:
    key = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "the authority's key is EC"
    return key


def _leaf(
    authority: Pair, name: str, purpose: x509.ObjectIdentifier, names: x509.SubjectAlternativeName | None
) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    signing = _signing_key(authority)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, issuer.subject, key.public_key(), _LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signing.public_key()), critical=False)
    )
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    return _pair(builder.sign(signing, hashes.SHA256()), key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(now + dt.timedelta(days=days))
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, key_cert_sign=sign_certificates, crl_sign=sign_certificates,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
