"""Runs a federation on one machine: Flower's simulation, Ray workers as the sites' processes.

``run_simulation`` is marked deprecated in Flower 1.41 in favour of ``flwr run``; this is the only file that uses it.
"""

import logging
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid as Grid  # for those who write a server's part without knowing Flower
from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from fedsam_pipeline.flower.client_app import SiteProcess, make_client_app
from fedsam_pipeline.flower.site_worker import SiteSetup

OBJECT_STORE_BYTES = 256 << 20
"""Ray's shared memory: messages are a few MB, so its default (a third of the machine) is not needed"""


class SimulatedSite(SiteProcess, Protocol):
    """A site whose process is started here."""

    @property
    def device(self) -> str: ...


S = TypeVar("S", bound=SimulatedSite)


def simulate(setups: Sequence[SiteSetup], server: Callable[[Grid, threading.Event], None], *, workers: int) -> None:
    """Runs the server's part of a training against one simulated node a site; arguments as :func:`simulate_app`."""
    simulate_app(setups, make_client_app, server, workers=workers)


def simulate_app(
    setups: Sequence[S],
    make_app: Callable[[Callable[[Context, RecordDict], S]], ClientApp],
    server: Callable[[Grid, threading.Event], None],
    *,
    workers: int,
) -> None:
    """Runs ``server`` against one simulated node a site.

    Args:
        setups: of the sites, in sorted order: the partition id is the position.
        make_app: the sites' part, given how a site's setup is found.
        server: the server's part, given the grid and an event that tells it to stop; what it raises is raised here.
        workers: sites that compute at the same time.
    """
    ordered = tuple(sorted(setups, key=lambda setup: setup.site))
    failures: list[BaseException] = []
    stop = threading.Event()
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        del context
        try:
            server(grid, stop)
        except BaseException as error:  # kept whole; Flower would log and wrap it
            failures.append(error)

    def find_setup(context: Context, content: RecordDict) -> S:
        del content
        return ordered[int(context.node_config["partition-id"])]

    gpus = torch.cuda.device_count() if ordered[0].device == "cuda" else 0
    gpu_share = 1 / math.ceil(workers / gpus) if gpus else 0.0  # Ray places shares of one GPU, or whole ones
    os.environ.setdefault("OMP_NUM_THREADS", str(ordered[0].num_threads))
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # processes that no site uses: sites need an environment of their own
    logging.getLogger("flwr").setLevel(logging.ERROR)
    try:
        run_simulation(
            server_app=app,
            client_app=make_app(find_setup),
            num_supernodes=len(ordered),
            backend_config={
                "init_args": {
                    "address": "local",  # never a Ray cluster that happens to run here
                    "num_cpus": workers,
                    "object_store_memory": OBJECT_STORE_BYTES,
                    "include_dashboard": False,
                    "log_to_driver": False,
                    "logging_level": logging.ERROR,
                },
                "client_resources": {"num_cpus": 1, "num_gpus": gpu_share},
            },
        )
    finally:
        stop.set()  # an interrupt reaches this thread only; the server's must not wait for sites that are gone
    if failures:
        raise failures[0]
