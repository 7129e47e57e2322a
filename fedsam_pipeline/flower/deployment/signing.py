"""Signing the app that a federation runs: a SuperNode with ``--trusted-entities`` runs nothing that none of them has signed.

Flower 1.41 takes signatures from its Hub only; an app that is submitted to a SuperLink has none. So the kit signs our app when it is made,
with a key that is then kept offline with the authority's, and the server's folder holds the signature alone.
"""

import base64
import hashlib
import json
import warnings
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.cli.build import build_fab_from_disk
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, sign_message

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.certificates import entity_id
from fedsam_pipeline.specs.site_kit import AppSignature

APP = Path(__file__).parent.parent / "app"
"""the folder that is submitted"""
LICENCE = "Apache-2.0"
SIGN_AGAIN = "on the machine that made the kit, with the same version installed and ca/ back from its medium: fedsam_site_kit sign KIT"


def installed_app() -> bytes:
    """The app's bundle: the same bytes for the same version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what Flower builds it with
        content: bytes = build_fab_from_disk(APP)
    return content


def sign_app(key: ed25519.Ed25519PrivateKey, app: bytes, now: int) -> AppSignature:
    """Vouches for an app.

    Args:
        key: its public half stands in the sites' ``trusted_entities.yaml``.
        app: the bundle.
        now: seconds since 1970.
    """
    digest = hashlib.sha256(app)
    signature = base64.urlsafe_b64encode(sign_message(key, create_message_to_sign(digest.digest(), now))).rstrip(b"=")
    return AppSignature(
        entity=entity_id(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)),
        app_sha256=digest.hexdigest(),
        signed_at=now,
        signature=signature.decode("ascii"),
    )


def verifications(signature: AppSignature) -> dict[str, str]:
    """What a SuperNode is handed with the app."""
    return {signature.entity: json.dumps({"signature": signature.signature, "signed_at": signature.signed_at}), "valid_license": LICENCE}


def signature_of_installed_app(path: Path) -> AppSignature:
    """Reads the kit's signature.

    Raises:
        FedsamError: there is none, or it is of another version of the app than the one installed here.
    """
    signature = AppSignature.load(path, fix=SIGN_AGAIN)
    digest = hashlib.sha256(installed_app()).hexdigest()
    if signature.app_sha256 != digest:
        raise FedsamError(
            "the signature is not of the app that is installed here",
            path=path,
            found=f"of the app with SHA-256 {signature.app_sha256[:16]}...",
            expected=f"{digest[:16]}...",
            fix=SIGN_AGAIN,
        )
    return signature
