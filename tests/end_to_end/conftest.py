"""Federations whose sites are Flower apps in this process (no Ray): they take seconds, and share what the simulation gives them."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from flwr.serverapp import Grid

from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.pipeline import train
from tests.flower.grids import DirectGrid


@pytest.fixture
def sites_in_process(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[SiteSetup]:
    """Training from the working folder serves its sites in this process; the sites that it served, in order."""
    served: list[SiteSetup] = []

    def simulate(setups: Sequence[SiteSetup], serve: Callable[[Grid, threading.Event], None], *, workers: int) -> None:
        served.extend(setups)
        serve(DirectGrid(setups), threading.Event())

    monkeypatch.setattr(train, "simulate", simulate)
    return served
