"""Kits for tests, and a server on loopback that speaks TLS without Flower."""

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

from fedsam_pipeline.flower.deployment.address import ServerAddress
from fedsam_pipeline.flower.deployment.kit import KitRequest, make_kit

NOON = datetime(2030, 6, 1, 12, tzinfo=UTC)
"""a time for tests that ask no clock"""


def make_test_kit(
    folder: Path, *, host: str = "127.0.0.1", port: int = 8000, now: datetime = NOON, keys_at_site: bool = False, also: tuple[str, ...] = ()
) -> Path:
    """A kit for two sites."""
    request = KitRequest(
        federation="trial",
        sites=("site_a", "site_b"),
        address=ServerAddress(host, port),
        base_model="tiny_random",
        also=also,
        keys_at_site=keys_at_site,
    )
    make_kit(request, folder, now=now)
    return folder


@contextmanager
def tls_server(certificate: Path, key: Path, *, date: datetime | None = NOON) -> Iterator[int]:
    """Answers every connection on loopback with 200 and ``date``; yields its port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    header = f"Date: {format_datetime(date, usegmt=True)}\r\n" if date else ""
    answer = f"HTTP/1.1 200 OK\r\n{header}Content-Length: 0\r\n\r\n".encode()
    with listening(context, answer) as port:
        yield port


@contextmanager
def listening(context: ssl.SSLContext | None, answer: bytes) -> Iterator[int]:
    """Accepts connections in a thread, with TLS or without, reads a request and sends ``answer``."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:  # closed below
                return
            with connection:
                try:
                    stream = connection if context is None else context.wrap_socket(connection, server_side=True)
                    stream.recv(4096)
                    stream.sendall(answer)
                    stream.close()
                except OSError:  # the client did not like the certificate
                    continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=10)


def free_port() -> int:
    """A port on loopback where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
