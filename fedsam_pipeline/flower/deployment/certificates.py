"""Certificates and keys of a federation. All cryptography is that of the library ``cryptography``, which Flower uses too.

One certificate authority a federation signs one server certificate (X.509 version 3, extensions of RFC 5280). Sites have no certificates: a
SuperNode proves who it is with an elliptic-curve key, and an app's author with an Ed25519 key. Flower 1.41 reads both in OpenSSH's format.
"""

import hashlib
import ipaddress
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsam_pipeline.errors import FedsamError

AUTHORITY_DAYS = 5 * 365
SERVER_DAYS = 365
BACKDATED = timedelta(days=1)
"""certificates are valid from a day before they were made: a site whose clock is slow still takes them"""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
"""in every server certificate: on the server itself, Flower's processes speak to each other over loopback"""

_NONE = serialization.NoEncryption()
T = TypeVar("T")


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key on P-384, the curve Flower recommends for SuperNodes."""
    return ec.generate_private_key(ec.SECP384R1())


def authority_certificate(key: ec.EllipticCurvePrivateKey, federation: str, now: datetime) -> x509.Certificate:
    """The authority's own certificate, valid for ``AUTHORITY_DAYS``; it may sign servers' certificates and nothing else.

    Args:
        key: the authority's.
        federation: for the common name.
        now: with a time zone.
    """
    usage = _usage(digital_signature=False, key_cert_sign=True, crl_sign=True)
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        _builder(f"{federation} certificate authority", key.public_key(), now, timedelta(days=AUTHORITY_DAYS))
        .issuer_name(_name(f"{federation} certificate authority"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
    )
    return builder.sign(key, hashes.SHA384())


def server_certificate(
    key: ec.EllipticCurvePublicKey,
    names: Sequence[str],
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    now: datetime,
) -> x509.Certificate:
    """A TLS server's certificate, valid for ``SERVER_DAYS`` but no longer than the authority's.

    Args:
        key: the server's public one: renewing needs no secret of the server.
        names: DNS names and IP addresses at which it is reached, the first one its common name; loopback is added.
        authority_key: signs.
        authority: its certificate.
        now: with a time zone.
    """
    every = dict.fromkeys((*names, *LOOPBACK_NAMES))
    issuer = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(names[0][:64], key, now, timedelta(days=SERVER_DAYS), latest=authority.not_valid_after_utc)
        .issuer_name(authority.subject)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True, key_cert_sign=False, crl_sign=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in every]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer), critical=False)
    )
    return builder.sign(authority_key, hashes.SHA384())


def certificate_bytes(certificate: x509.Certificate) -> bytes:
    """PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    """PEM (PKCS 8), for TLS. Not encrypted: the server must start without a person; the file's mode protects it."""
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, _NONE)


def openssh_pair(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey, comment: str) -> tuple[bytes, bytes]:
    """Private key file and public key line, as SuperNodes and ``flwr supernode register`` read them."""
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, _NONE)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public + b" " + comment.encode("ascii") + b"\n"


def signing_key() -> ed25519.Ed25519PrivateKey:
    """A key that signs apps. Flower takes Ed25519 only."""
    return ed25519.Ed25519PrivateKey.generate()


def entity_id(public_line: bytes) -> str:
    """The name under which a signing key stands in ``trusted_entities.yaml``: ``fpk_`` and the start of the key's SHA-256."""
    return "fpk_" + hashlib.sha256(public_line.split()[1]).hexdigest()[:32]


def load_signing_key(path: Path) -> ed25519.Ed25519PrivateKey:
    """Reads a private key that signs apps; ``FedsamError`` where there is none."""

    def read(content: bytes) -> ed25519.Ed25519PrivateKey:
        key = serialization.load_ssh_private_key(content, None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise ValueError(f"{type(key).__name__}, not an Ed25519 key")
        return key

    return _load(path, "an Ed25519 private key in OpenSSH's format", read)


def load_certificate(path: Path) -> x509.Certificate:
    """Reads a PEM certificate; ``FedsamError`` where there is none."""
    return _load(path, "a certificate", x509.load_pem_x509_certificate)


def load_tls_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a key of ``key_bytes``; ``FedsamError`` where there is none."""
    return _load(path, "a private key", lambda content: _on_a_curve(serialization.load_pem_private_key(content, None)))


def load_node_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Reads a SuperNode's private key; ``FedsamError`` where there is none."""
    return _load(path, "a private key in OpenSSH's format", lambda content: _on_a_curve(serialization.load_ssh_private_key(content, None)))


def load_node_public_key(path: Path) -> bytes:
    """Reads a SuperNode's public key line; returns it as PEM, which is how Flower keeps it. ``FedsamError`` where there is none."""

    def read(content: bytes) -> bytes:
        key = serialization.load_ssh_public_key(content)
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError(f"{type(key).__name__}, not a key on an elliptic curve")
        return public_bytes(key)

    return _load(path, "a public key in OpenSSH's format", read)


def public_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """PEM, to compare keys by."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def belongs_to(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> bool:
    """Whether the certificate speaks of this key."""
    public = certificate.public_key()
    return isinstance(public, ec.EllipticCurvePublicKey) and public_bytes(public) == public_bytes(key.public_key())


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    """DNS names and IP addresses of the subject alternative name; none where it has no such extension."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether the certificate holds for ``host``: the very name or address; we issue no wildcards."""
    try:
        wanted = str(ipaddress.ip_address(host))
    except ValueError:
        wanted = host.lower()
    return wanted in {name.lower() for name in names_of(certificate)}


def _builder(
    common_name: str, key: ec.EllipticCurvePublicKey, now: datetime, lasts: timedelta, latest: datetime | None = None
) -> x509.CertificateBuilder:
    end = now + lasts if latest is None else min(now + lasts, latest)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common_name))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _usage(*, digital_signature: bool, key_cert_sign: bool, crl_sign: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _on_a_curve(key: object) -> ec.EllipticCurvePrivateKey:
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{type(key).__name__}, not a key on an elliptic curve")
    return key


def _load(path: Path, kind: str, read: Callable[[bytes], T]) -> T:
    """What ``read`` makes of a file. Errors show nothing of its content: it may be a secret."""
    try:
        return read(path.read_bytes())
    except OSError as error:
        raise FedsamError(f"{kind} cannot be read", path=path, found=error.strerror, fix="check the path and who may read it") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FedsamError(
            f"a file is not {kind}", path=path, found=type(error).__name__, fix="copy it again, or make the kit anew"
        ) from error
