"""The ServerApp of a real federation."""

import logging
import sys
from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp


def make_server_app(key: str, serve: Callable[[Grid, str], None]) -> ServerApp:
    """Makes what a SuperLink runs.

    Args:
        key: of the run configuration.
        serve: the work of a run, from Flower's connection to all nodes and what stands under ``key``. What it prints, and the package's
            log, is streamed to the user who submitted the run.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        ours = logging.getLogger("fedsam_pipeline")
        ours.setLevel(logging.INFO)
        ours.addHandler(logging.StreamHandler(sys.stdout))
        serve(grid, str(context.run_config.get(key)))

    return app
