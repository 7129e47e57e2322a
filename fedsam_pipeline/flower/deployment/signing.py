"""Signing the app that a federation runs: a SuperNode with ``--trusted-entities`` runs nothing that none of them has signed.

Flower 1.41 takes signatures from its Hub only; an app that is submitted to a SuperLink has none. The kit's SuperLink signs it as it comes,
if it is, byte for byte, the app of the package that is installed on the server, and no other.
"""

import base64
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_private_key
from flwr.cli.build import build_fab_from_disk
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, sign_message

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.certificates import entity_id

APP = Path(__file__).parent.parent / "app"
"""the folder that is submitted"""
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Signer:
    """Who vouches for the app.

    Attributes:
        entity: the name under which the public key stands in the sites' ``trusted_entities.yaml``.
        key: the private half.
    """

    entity: str
    key: ed25519.Ed25519PrivateKey

    @classmethod
    def load(cls, path: Path) -> "Signer":
        """Reads an OpenSSH private key without a passphrase.

        Raises:
            FedsamError: there is none, or of another kind.
        """
        try:
            key = load_ssh_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FedsamError("the key that signs the app cannot be read", path=path, found=str(error), fix="check the path") from error
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise FedsamError("the key that signs the app is of the wrong kind", path=path, found=type(key).__name__, expected="Ed25519")
        return cls(entity_id(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)), key)

    def verifications(self, app: bytes, now: int) -> dict[str, str]:
        """What a SuperNode asks for.

        Args:
            app: the bundle.
            now: seconds since 1970.
        """
        signature = sign_message(self.key, create_message_to_sign(hashlib.sha256(app).digest(), now))
        text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode("ascii")
        return {self.entity: json.dumps({"signature": text, "signed_at": now}), "valid_license": LICENCE}


def installed_app() -> bytes:
    """The app's bundle: the same bytes for the same version."""
    content: bytes = build_fab_from_disk(APP)
    return content


def sign_installed_app(signer: Signer) -> None:
    """From now on, every SuperLink of this process stores the app with a signature; all others as they come."""
    app, store = installed_app(), SqlLinkState.store_app

    def store_signed(state: SqlLinkState, fab: Fab, *arguments: Any, **named: Any) -> str:
        if fab.content == app:
            fab = replace(fab, verifications=signer.verifications(app, int(time.time())))
        return store(state, fab, *arguments, **named)

    patched: Callable[..., str] = store_signed
    SqlLinkState.store_app = patched  # type: ignore[method-assign]
