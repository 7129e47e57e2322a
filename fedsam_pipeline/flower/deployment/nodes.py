"""Which SuperNodes a SuperLink has registered, asked over its Control API on the server itself."""

from pathlib import Path

import httpx
from flwr.proto.control_pb2 import ListNodesRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.address import ServerAddress


def registered_keys(address: ServerAddress, authority: Path) -> dict[bytes, str]:
    """Public key (PEM) to status (``registered``, ``online`` or ``offline``) of every SuperNode that is registered.

    Args:
        address: of the SuperLink, over loopback.
        authority: certificate of the one authority to trust, PEM.

    Raises:
        FedsamError: no answer, or a refusal.
    """
    try:
        client = ControlHttpClient.from_server_address(
            str(address), False, str(authority), [RuntimeVersionHttpInterceptor(component_name="fedsam_doctor")]
        )
        try:
            nodes = client.ListNodes(ListNodesRequest()).nodes_info
        finally:
            client.close()
    except (httpx.HTTPError, FlowerError, OSError, ValueError) as error:
        raise FedsamError("the SuperLink does not list its nodes", path=str(address), found=str(error), fix="look at its log") from error
    return {bytes(node.public_key).strip(): str(node.status) for node in nodes if node.status != "unregistered"}
