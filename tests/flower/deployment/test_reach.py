"""A real TLS handshake on loopback, right and wrong in every way."""

import socket
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.certificates import load_certificate
from fedsam_pipeline.flower.deployment.reach import GreetingError, Refusal, greet
from tests.flower.deployment.kits import NOON, free_port, listening, make_test_kit, tls_server


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Valid now: OpenSSL asks the machine's clock, and no other."""
    return make_test_kit(tmp_path_factory.mktemp("reach") / "kit", host="localhost", now=datetime.now(UTC))


def at_noon() -> datetime:
    return NOON


def refusal(address: ServerAddress, authority: Path, through: ServerAddress | None = None) -> Refusal:
    with pytest.raises(GreetingError) as caught:
        greet(address, authority, clock=at_noon, through=through)
    assert str(caught.value)
    return caught.value.refusal


def pair(kit: Path) -> tuple[Path, Path]:
    return kit / "server" / "server.crt", kit / "server" / "server.key"


def test_pythons_own_handshake_trusts_the_kit(kit: Path) -> None:
    context = ssl.create_default_context(cafile=str(kit / "site_a" / "ca.crt"))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with tls_server(*pair(kit)) as port:
        for name in ("localhost", "127.0.0.1"):
            with socket.create_connection(("127.0.0.1", port)) as plain, context.wrap_socket(plain, server_hostname=name) as secure:
                assert secure.version() in ("TLSv1.2", "TLSv1.3")
                secure.sendall(b"x")


@pytest.mark.parametrize("seconds", [-400, -3, 0, 7])
def test_the_greeting_knows_the_certificate_and_both_clocks(kit: Path, seconds: int) -> None:
    with tls_server(*pair(kit), date=NOON - timedelta(seconds=seconds)) as port:
        greeting = greet(ServerAddress("localhost", port), kit / "ca" / "ca.crt", clock=at_noon)
    assert greeting.certificate == load_certificate(kit / "server" / "server.crt")
    assert greeting.ahead_s == pytest.approx(seconds, abs=0.51)


def test_a_server_that_tells_no_time(kit: Path) -> None:
    with tls_server(*pair(kit), date=None) as port:
        assert greet(ServerAddress("localhost", port), kit / "ca" / "ca.crt", clock=at_noon).ahead_s is None


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0\r\n", b"HTTP/1.1 200 OK\r\nDate: yesterday\r\n\r\n"])
def test_what_answers_is_no_web_server(kit: Path, answer: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair(kit))
    with listening(context, answer) as port:
        assert greet(ServerAddress("localhost", port), kit / "ca" / "ca.crt", clock=at_noon).ahead_s is None


@pytest.mark.parametrize(
    ("zone", "ahead_s"), [("GMT", 0.0), ("-0000", 0.0), ("", 0.0), ("+0100", 3600.0), ("+9999", None), ("+99999999999999999999", None)]
)
def test_every_zone_that_a_date_may_name(kit: Path, zone: str, ahead_s: float | None) -> None:
    """RFC 9110 knows GMT alone, and every date in HTTP is of it: without a zone, too."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair(kit))
    answer = f"HTTP/1.1 200 OK\r\nDate: Sat, 01 Jun 2030 12:00:00 {zone}\r\nContent-Length: 0\r\n\r\n"
    with listening(context, answer.encode("ascii")) as port:
        found = greet(ServerAddress("localhost", port), kit / "ca" / "ca.crt", clock=at_noon).ahead_s
    assert found == (None if ahead_s is None else pytest.approx(ahead_s, abs=0.51))


@pytest.mark.parametrize("host", ["a..b", ".b", "a" * 64 + ".org"])
def test_a_host_that_no_resolver_takes(kit: Path, host: str) -> None:
    assert refusal(ServerAddress(host, 8000), kit / "ca" / "ca.crt") is Refusal.UNREACHABLE
    with tls_server(*pair(kit)) as port:
        assert refusal(ServerAddress(host, port), kit / "ca" / "ca.crt", ServerAddress("127.0.0.1", port)) is Refusal.NO_TLS


def test_nobody_listens(kit: Path) -> None:
    assert refusal(ServerAddress("127.0.0.1", free_port()), kit / "ca" / "ca.crt") is Refusal.UNREACHABLE


def test_a_server_without_tls(kit: Path) -> None:
    with listening(None, b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        assert refusal(ServerAddress("127.0.0.1", port), kit / "ca" / "ca.crt") is Refusal.NO_TLS


def test_another_authority(kit: Path, tmp_path: Path) -> None:
    other = make_test_kit(tmp_path / "other", now=datetime.now(UTC))
    with tls_server(*pair(kit)) as port:
        assert refusal(ServerAddress("127.0.0.1", port), other / "ca" / "ca.crt") is Refusal.UNTRUSTED


@pytest.mark.parametrize("host", ["fl.hospital.org", "10.0.0.9"])
def test_another_name(kit: Path, host: str) -> None:
    with tls_server(*pair(kit)) as port:
        through = ServerAddress("127.0.0.1", port)
        assert refusal(ServerAddress(host, port), kit / "ca" / "ca.crt", through) is Refusal.OTHER_NAME


@pytest.mark.parametrize(("days", "expected"), [(-500, Refusal.EXPIRED), (100, Refusal.NOT_YET_VALID)])
def test_a_certificate_out_of_its_time(tmp_path: Path, days: int, expected: Refusal) -> None:
    kit = make_test_kit(tmp_path / "kit", now=datetime.now(UTC) + timedelta(days=days))
    with tls_server(*pair(kit)) as port:
        assert refusal(ServerAddress("127.0.0.1", port), kit / "ca" / "ca.crt") is expected
