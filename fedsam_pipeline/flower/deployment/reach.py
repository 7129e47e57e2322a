"""Asking a server who it is: TCP, the TLS handshake against the federation's authority, and the time by its clock."""

import http.client
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE

from fedsam_pipeline.flower.deployment.address import ServerAddress

TIMEOUT_S = 10.0
MAX_AHEAD_S: float = SYSTEM_TIME_TOLERANCE
"""how far a site's clock may be ahead of the server's before Flower refuses the site's signature, in seconds"""
MAX_BEHIND_S: float = TIMESTAMP_TOLERANCE
"""the same behind it"""
DATE_STEP_S = 0.5
"""HTTP's Date has whole seconds, cut off: the server's clock is half a second later on average"""

_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_ADDRESS = 9, 10, 62, 64  # X509_V_ERR_* of OpenSSL


class Refusal(StrEnum):
    """Where the conversation ended."""

    UNREACHABLE = "unreachable"
    NO_TLS = "no TLS"
    UNTRUSTED = "untrusted"
    NOT_YET_VALID = "not yet valid"
    EXPIRED = "expired"
    OTHER_NAME = "other name"


class GreetingError(Exception):
    """The server did not answer as it should.

    Args:
        refusal: at which step.
        reason: the operating system's or OpenSSL's words.
    """

    def __init__(self, refusal: Refusal, reason: str) -> None:
        super().__init__(reason)
        self.refusal = refusal


@dataclass(frozen=True)
class Greeting:
    """What the server answered.

    Args:
        certificate: its own, trusted and for the right name.
        ahead_s: seconds that this machine's clock is ahead of the server's, within a second; ``None`` where the answer has no date.
    """

    certificate: x509.Certificate
    ahead_s: float | None


def greet(address: ServerAddress, authority: Path, *, clock: Callable[[], datetime], through: ServerAddress | None = None) -> Greeting:
    """Connects to a server, checks its certificate and asks for ``/health``.

    Args:
        address: the server's; its certificate must hold for this host.
        authority: certificate of the one authority to trust, PEM.
        clock: the time now, with a time zone.
        through: connect to this address instead.

    Raises:
        GreetingError: it cannot be reached, or is not who it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=authority)
    goal = through or address
    try:
        plain = socket.create_connection((goal.host, goal.port), timeout=TIMEOUT_S)
    except (OSError, ValueError) as error:  # UnicodeError: a host that is no DNS name
        raise GreetingError(Refusal.UNREACHABLE, str(error)) from error
    with plain:
        try:
            secure = context.wrap_socket(plain, server_hostname=address.host)
        except ssl.SSLCertVerificationError as error:
            raise GreetingError(_refusal(error.verify_code), error.verify_message) from error
        except (OSError, ValueError) as error:  # ssl.SSLError, a reset, a timeout; UnicodeError as above
            raise GreetingError(Refusal.NO_TLS, str(error)) from error
        with secure:
            certificate = secure.getpeercert(binary_form=True)
            assert certificate is not None
            return Greeting(x509.load_der_x509_certificate(certificate), _ahead(secure, address, clock))


def _ahead(connection: ssl.SSLSocket, address: ServerAddress, clock: Callable[[], datetime]) -> float | None:
    """This clock minus the server's; ``None`` where what answers is no web server or tells no time."""
    before = clock()
    try:
        connection.sendall(f"HEAD /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode("ascii"))
        response = http.client.HTTPResponse(connection, method="HEAD")
        response.begin()
        after = clock()
        server = parsedate_to_datetime(response.headers["Date"])
    except (OSError, http.client.HTTPException, ValueError, TypeError, OverflowError):  # TypeError: no such header; OverflowError: its zone
        return None
    if server.tzinfo is None:  # "-0000", or no zone: HTTP's dates are of UTC (RFC 9110, 5.6.7)
        server = server.replace(tzinfo=UTC)
    return (before + (after - before) / 2 - server).total_seconds() - DATE_STEP_S


def _refusal(code: int) -> Refusal:
    known = {_NOT_YET_VALID: Refusal.NOT_YET_VALID, _EXPIRED: Refusal.EXPIRED}
    known |= dict.fromkeys((_OTHER_NAME, _OTHER_ADDRESS), Refusal.OTHER_NAME)
    return known.get(code, Refusal.UNTRUSTED)
