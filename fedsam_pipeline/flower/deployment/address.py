"""``HOST:PORT``, as a user gives it and as certificates and connections need it."""

import ipaddress
import re
from dataclasses import dataclass

from fedsam_pipeline.errors import FedsamError

_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True)
class ServerAddress:
    """Where the SuperLink is reached.

    Args:
        host: a DNS name, or an IP address without brackets.
        port: 1 to 65535.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if self.is_ipv6 else f"{self.host}:{self.port}"

    @property
    def is_ipv6(self) -> bool:
        """Whether the host is an IPv6 address."""
        return ":" in self.host

    @property
    def loopback(self) -> "ServerAddress":
        """The same port, asked on the server itself."""
        return ServerAddress("::1" if self.is_ipv6 else "127.0.0.1", self.port)

    @classmethod
    def parse(cls, text: str) -> "ServerAddress":
        """Reads ``HOST:PORT``; an IPv6 address stands in brackets.

        Raises:
            FedsamError: no such address.
        """
        host, colon, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        name = host[1:-1] if bracketed else host
        if not (colon and re.fullmatch(r"[0-9]{1,5}", port) and 1 <= int(port) <= 65535 and is_host(name) and bracketed == (":" in name)):
            raise FedsamError(
                "the server's address is not HOST:PORT",
                found=text,
                expected="a DNS name or IP address and a port, such as fl.hospital.org:8000, 10.0.0.5:8000 or [2001:db8::5]:8000",
                fix="give the address at which all sites reach the server",
            )
        return cls(name, int(port))


def is_host(name: str) -> bool:
    """Whether ``name`` is an IP address or a DNS name (RFC 1123). A last label of digits alone makes an address, not a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        labels = name.split(".")
        return 0 < len(name) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdecimal()
    return "%" not in name  # no zone of one machine
