"""``flower-superlink`` with a Control API for this machine only, which hands our own app out with its signature.

``python -m fedsam_pipeline.flower.deployment.superlink [--app-signature FILE] FLAGS OF FLOWER-SUPERLINK``

Since Flower 1.41 one port serves the Fleet API, where SuperNodes prove who they are, and the Control and Runtime APIs, where nobody does:
whoever reaches the port could register a SuperNode, start an app, stop a run or read its log. A firewall cannot tell the two apart, so the
SuperLink itself answers other machines on the Fleet API and the health check alone. Flower has a hook for middleware, which is used here.
"""

import argparse
import hashlib
import ipaddress
import os
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.fab import Fab
from flwr.superlink import extensions
from flwr.superlink.cli import flower_superlink
from starlette.middleware import Middleware

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.signing import signature_of_installed_app, verifications
from fedsam_pipeline.specs.site_kit import AppSignature

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Scope]]
Send = Callable[[Scope], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

FLEET = "/v1/fleet/"
HEALTH = "/health"
REFUSAL = b"the Control and Runtime APIs answer over loopback on the server itself only\n"


class FleetOnly:
    """ASGI middleware: other machines reach the Fleet API and the health check, nothing else.

    Args:
        app: what answers where this does not refuse.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or is_open(scope["path"]) or from_this_machine(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": REFUSAL})
        else:
            await send({"type": "websocket.close", "code": 1008})


def is_open(path: str) -> bool:
    """Whether any machine may ask for ``path`` (decoded, as the router reads it)."""
    return path == HEALTH or path.startswith(FLEET)


def from_this_machine(scope: Scope) -> bool:
    """Whether the connection came over loopback.

    The server's own other addresses do not count: rootless port forwarding into a container can show every client under the container's.
    """
    client = _plain(scope.get("client"))
    return client is not None and client.is_loopback


def _plain(end: tuple[str, int] | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of an end, IPv4 out of its IPv6 clothes; ``None`` where it is not told, or is none (a socket file)."""
    try:
        address = ipaddress.ip_address("" if end is None else end[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def close_control_api() -> None:
    """Puts ``FleetOnly`` in front of every SuperLink that this process makes."""
    others = extensions.get_middleware
    extensions.get_middleware = lambda: (Middleware(FleetOnly), *others())


def hand_out_signed(signature: AppSignature) -> None:
    """From now on, every SuperLink of this process stores the app that was signed with its signature; all others as they come."""
    store = SqlLinkState.store_app

    def store_signed(state: SqlLinkState, fab: Fab, *arguments: Any, **named: Any) -> str:
        if hashlib.sha256(fab.content).hexdigest() == signature.app_sha256:
            fab = replace(fab, verifications=verifications(signature))
        return store(state, fab, *arguments, **named)

    patched: Callable[..., str] = store_signed
    SqlLinkState.store_app = patched  # type: ignore[method-assign]


def own_flag(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """Value of ``--app-signature``, and the flags of ``flower-superlink``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--app-signature", type=Path)
    own, rest = parser.parse_known_args(arguments)
    return own.app_signature, rest


def main() -> None:
    """Runs the SuperLink with this process's command line; exit code 2 where the signature is not of the installed app."""
    signature, sys.argv[1:] = own_flag(sys.argv[1:])
    if signature is not None:
        try:
            hand_out_signed(signature_of_installed_app(signature))
        except FedsamError as error:
            print(error, file=sys.stderr)
            sys.exit(2)
    os.environ["FORWARDED_ALLOW_IPS"] = "127.0.0.1"  # uvicorn's: from no other machine is X-Forwarded-For believed, whatever was set here
    close_control_api()
    flower_superlink()


if __name__ == "__main__":
    main()
