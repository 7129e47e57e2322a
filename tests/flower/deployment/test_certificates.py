"""Certificates hold for an independent verifier; keys are what Flower reads."""

import ipaddress
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.certificates import (
    AUTHORITY_DAYS,
    BACKDATED,
    SERVER_DAYS,
    authority_certificate,
    belongs_to,
    certificate_bytes,
    covers,
    entity_id,
    issued_by,
    key_bytes,
    load_certificate,
    load_node_key,
    load_node_public_key,
    load_tls_key,
    names_of,
    new_key,
    openssh_pair,
    public_bytes,
    server_certificate,
    signing_key,
)
from tests.flower.deployment.kits import NOON

AUTHORITY_KEY, KEY = new_key(), new_key()
AUTHORITY = authority_certificate(AUTHORITY_KEY, "trial", NOON)
SERVER = server_certificate(KEY.public_key(), ("fl.hospital.org", "10.0.0.5"), AUTHORITY_KEY, AUTHORITY, NOON)


def verify(certificate: x509.Certificate, host: str, *, days: float = 0.0, trusted: x509.Certificate = AUTHORITY) -> None:
    try:
        subject: x509.DNSName | x509.IPAddress = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        subject = x509.DNSName(host)
    policy = PolicyBuilder().store(Store([trusted])).time(NOON + timedelta(days=days))
    policy.build_server_verifier(subject).verify(certificate, [])


@pytest.mark.parametrize("host", ["fl.hospital.org", "10.0.0.5", "localhost", "127.0.0.1", "::1"])
def test_the_certificate_verifies_for_every_name_of_the_server(host: str) -> None:
    verify(SERVER, host)
    assert covers(SERVER, host)


@pytest.mark.parametrize("host", ["other.hospital.org", "hospital.org", "10.0.0.6"])
def test_it_does_not_verify_for_another_name(host: str) -> None:
    with pytest.raises(VerificationError):
        verify(SERVER, host)
    assert not covers(SERVER, host)


def test_names_are_compared_as_tls_does() -> None:
    assert covers(SERVER, "FL.Hospital.org") and covers(SERVER, "0:0:0:0:0:0:0:1")
    assert set(names_of(SERVER)) == {"fl.hospital.org", "localhost", "10.0.0.5", "127.0.0.1", "::1"}
    assert names_of(AUTHORITY) == ()


def test_another_authority_of_the_same_name_is_not_trusted() -> None:
    other = authority_certificate(new_key(), "trial", NOON)
    with pytest.raises(VerificationError):
        verify(SERVER, "localhost", trusted=other)
    assert issued_by(SERVER, AUTHORITY) and not issued_by(SERVER, other) and not issued_by(AUTHORITY, SERVER)


@pytest.mark.parametrize(("days", "valid"), [(-1.1, False), (-0.9, True), (SERVER_DAYS - 0.1, True), (SERVER_DAYS + 0.1, False)])
def test_it_is_valid_for_a_year_and_from_a_day_before(days: float, valid: bool) -> None:
    assert (BACKDATED.days, SERVER_DAYS, AUTHORITY_DAYS) == (1, 365, 5 * 365)
    if valid:
        verify(SERVER, "localhost", days=days)
    else:
        with pytest.raises(VerificationError):
            verify(SERVER, "localhost", days=days)


def test_no_certificate_outlives_its_authority() -> None:
    late = server_certificate(KEY.public_key(), ("host",), AUTHORITY_KEY, AUTHORITY, NOON + timedelta(days=AUTHORITY_DAYS - 10))
    assert late.not_valid_after_utc == AUTHORITY.not_valid_after_utc


def test_what_each_certificate_may_be_used_for() -> None:
    authority, server = AUTHORITY.extensions, SERVER.extensions
    constraints = authority.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    assert server.get_extension_for_class(x509.BasicConstraints).value == x509.BasicConstraints(ca=False, path_length=None)
    usage, own = (each.get_extension_for_class(x509.KeyUsage) for each in (authority, server))
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign and not usage.value.digital_signature
    assert own.critical and own.value.digital_signature and not own.value.key_cert_sign
    assert list(server.get_extension_for_class(x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    identifier = authority.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert server.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier == identifier
    assert SERVER.version is x509.Version.v3 and SERVER.serial_number != AUTHORITY.serial_number


def test_a_server_certificate_cannot_sign_another() -> None:
    forged = server_certificate(new_key().public_key(), ("evil.org",), KEY, SERVER, NOON)
    with pytest.raises(VerificationError):
        PolicyBuilder().store(Store([AUTHORITY])).time(NOON).build_server_verifier(x509.DNSName("evil.org")).verify(forged, [SERVER])


def test_node_keys_are_what_flower_reads() -> None:
    private, public = openssh_pair(KEY, "site_a")
    assert private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----") and public.startswith(b"ecdsa-sha2-nistp384 ")
    assert public.endswith(b" site_a\n") and public.count(b"\n") == 1
    assert load_ssh_private_key(private, None).public_key() == load_ssh_public_key(public) == KEY.public_key()


def test_signing_keys_are_ed25519_and_named_by_their_hash() -> None:
    _, public = openssh_pair(signing_key(), "trial app")
    assert public.startswith(b"ssh-ed25519 ")
    assert entity_id(public) == entity_id(public.split()[0] + b" " + public.split()[1]) != entity_id(openssh_pair(signing_key(), "")[1])


def test_files_are_read_back(tmp_path: Path) -> None:
    private, public = openssh_pair(KEY, "site_a")
    contents = {"c": certificate_bytes(SERVER), "t": key_bytes(KEY), "n": private, "p": public}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    assert load_certificate(tmp_path / "c") == SERVER
    assert belongs_to(SERVER, load_tls_key(tmp_path / "t")) and not belongs_to(AUTHORITY, KEY)
    assert public_bytes(load_node_key(tmp_path / "n").public_key()) == load_node_public_key(tmp_path / "p")


@pytest.mark.parametrize("load", [load_certificate, load_tls_key, load_node_key, load_node_public_key])
def test_a_file_of_another_kind_is_refused_without_a_word_of_its_content(load: object, tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert callable(load)
    with pytest.raises(FedsamError, match="cannot be read"):
        load(path)
    for content in (b"", b"secret-content", b"-----BEGIN OPENSSH PRIVATE KEY-----\nsecret-content\n-----END OPENSSH PRIVATE KEY-----\n"):
        path.write_bytes(content)
        with pytest.raises(FedsamError, match="a file is not a") as caught:
            load(path)
        assert "secret-content" not in str(caught.value) and str(path) in str(caught.value)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    private, public = openssh_pair(signing_key(), "app")
    (tmp_path / "private").write_bytes(private)
    (tmp_path / "public").write_bytes(public)
    with pytest.raises(FedsamError, match="not a private key"):
        load_node_key(tmp_path / "private")
    with pytest.raises(FedsamError, match="not a public key"):
        load_node_public_key(tmp_path / "public")
