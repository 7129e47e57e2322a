"""Hands a run to a SuperLink and follows it: what ``flwr run --stream`` does, with an honest end.

Flower offers this as commands only; the functions behind them are used here, of the one minor version that is pinned.
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import click
from flwr.cli.flower_config import read_superlink_connection
from flwr.cli.log import AllLogsRetrieved, stream_logs
from flwr.cli.utils import flwr_cli_exc_handler, init_http_client_from_connection
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest
from flwr.proto.run_pb2 import RunStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.fab import Fab

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.deployment.signing import installed_app

POLL_SECONDS = 1.0
FINISHED, COMPLETED = "finished", "completed"


def submit(superlink: str, sites: Sequence[str] | None, configuration: Callable[[tuple[str, ...]], dict[str, str]]) -> None:
    """Starts a run, prints its log as it comes, and returns when it has ended well.

    Args:
        superlink: name of a connection in Flower's configuration file.
        sites: those that take part; ``None``: all that are registered.
        configuration: of the run, from the sites' names.

    Raises:
        FedsamError: there is no such connection, the SuperLink does not answer or refuses, a site is not registered, or the run failed.
    """
    try:
        client = init_http_client_from_connection(read_superlink_connection(superlink))
        try:
            with flwr_cli_exc_handler():
                nodes = client.ListNodes(ListNodesRequest()).nodes_info
            names = [node.name for node in nodes if node.status != "unregistered" and node.name]
            run_config = user_config_to_proto(dict(configuration(_chosen(superlink, sites, names))))
            app = installed_app()
            fab = fab_to_proto(Fab(hashlib.sha256(app).hexdigest(), app, {}))
            with flwr_cli_exc_handler():
                run_id = client.StartRun(StartRunRequest(fab=fab, override_config=run_config)).run_id
            status = _followed(client, run_id, superlink)
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


def _followed(client: ControlHttpClient, run_id: int, superlink: str) -> RunStatus:
    """Prints a run's log as it comes; its status when it has ended. Ctrl-C ends the printing, not the run."""
    print(f"run {run_id} of {superlink}; it goes on if this command is stopped: flwr stop {run_id} {superlink} stops it", flush=True)
    try:
        with flwr_cli_exc_handler(), suppress(AllLogsRetrieved):
            stream_logs(run_id, client, 0.0)
        while True:
            with flwr_cli_exc_handler():
                status: RunStatus = client.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
            if status.status == FINISHED:
                return status
            time.sleep(POLL_SECONDS)
    except click.ClickException as error:
        raise FedsamError(
            "the connection to the run was lost",
            found=error.format_message(),
            expected="a SuperLink that answers until the run has ended",
            fix=f"while the SuperLink lives, the run goes on without this command: flwr log {run_id} {superlink} shows what it prints; "
            "where it was stopped, start it again and repeat this command with --c",
        ) from error


def _chosen(superlink: str, sites: Sequence[str] | None, registered: Sequence[str]) -> tuple[str, ...]:
    """The sites of a run, sorted."""
    unknown = sorted(set(registered if sites is None else sites) - set(registered))
    twice = sorted(name for name in set(registered) if registered.count(name) > 1 and (sites is None or name in sites))
    if unknown or twice or not registered:
        raise FedsamError(
            "the sites of this run are not registered, each by one name",
            found=", ".join((*(f"{name} not registered" for name in unknown), *(f"{name} twice" for name in twice))) or "no site at all",
            expected=f"of {', '.join(sorted(set(registered))) or 'those that are registered'}",
            fix=f"flwr supernode register keys/SITE.pub {superlink} --name SITE registers one, flwr supernode list {superlink} shows all",
        )
    return tuple(sorted(set(sites or registered)))
