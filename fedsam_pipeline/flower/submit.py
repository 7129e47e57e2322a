"""Hands a run to a SuperLink and follows it: what ``flwr run --stream`` does, with a signed app and an honest end.

Flower offers this as commands only; the functions behind them are used here, of the one minor version that is pinned.
"""

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import click
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.build import build_fab_from_disk
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.log import start_stream
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, StartRunRequest
from flwr.supercore.fab import Fab
from flwr.supercore.primitives.asymmetric_ed25519 import create_message_to_sign, sign_message

from fedsam_pipeline.errors import FedsamError

APP = Path(__file__).parent / "app"
"""the folder that is submitted"""
POLL_SECONDS = 1.0
FINISHED, COMPLETED = "finished", "completed"


@dataclass(frozen=True)
class Signer:
    """Who vouches for the app: sites run only what one of their trusted entities has signed.

    Attributes:
        entity: the name under which the public key stands in the sites' ``trusted_entities.yaml``.
        key: the private half.
    """

    entity: str
    key: ed25519.Ed25519PrivateKey

    @classmethod
    def load(cls, path: Path, entity: str) -> "Signer":
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
        return cls(entity, key)

    def verifications(self, app: bytes, now: int) -> dict[str, str]:
        """What a SuperNode with ``--trusted-entities`` asks for.

        Args:
            app: the bundle.
            now: seconds since 1970.
        """
        signature = sign_message(self.key, create_message_to_sign(hashlib.sha256(app).digest(), now))
        text = base64.urlsafe_b64encode(signature).rstrip(b"=").decode("ascii")
        return {self.entity: json.dumps({"signature": text, "signed_at": now}), "valid_license": "Apache-2.0"}


def submit(superlink: str, configuration: dict[str, str], signer: Signer | None) -> None:
    """Starts a run, prints its log as it comes, and returns when it has ended well.

    Args:
        superlink: name of a connection in Flower's configuration file.
        configuration: of the run.
        signer: ``None`` leaves the app unsigned, which sites of a start-up kit refuse.

    Raises:
        FedsamError: there is no such connection, the SuperLink does not answer or refuses, or the run failed.
    """
    try:
        client = init_http_client_from_connection(read_superlink_connection(superlink))
        try:
            app = build_fab_from_disk(APP)
            verifications = {} if signer is None else signer.verifications(app, int(time.time()))
            fab = fab_to_proto(Fab(hashlib.sha256(app).hexdigest(), app, verifications))
            with flwr_cli_exc_handler():
                run_id = client.StartRun(StartRunRequest(fab=fab, override_config=user_config_to_proto(dict(configuration)))).run_id
            print(f"run {run_id} of {superlink}; it goes on if this command is stopped", flush=True)
            start_stream(run_id, client)
            while True:
                with flwr_cli_exc_handler():
                    status = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
                if status.status == FINISHED:
                    break
                time.sleep(POLL_SECONDS)
        finally:
            client.close()
    except click.ClickException as error:
        raise FedsamError(
            "the federation's server did not take the run",
            found=error.format_message(),
            expected=f"a SuperLink that answers as {superlink}",
            fix="check its entry in Flower's config.toml (docs/deploy.md), and that the SuperLink runs",
        ) from error
    if status.sub_status != COMPLETED:
        raise FedsamError(
            "the run did not end well",
            found=f"{status.sub_status} {status.details}".strip(),
            fix="the lines above say why; mend it and repeat the command with --c",
        )
