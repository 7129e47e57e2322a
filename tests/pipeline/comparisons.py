"""A planned tiny dataset, and federations that run within this process in place of Flower's simulation."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.entrypoints.plan_and_preprocess import main as plan_and_preprocess
from fedsam_pipeline.flower.simulation import Grid
from fedsam_pipeline.flower.site_worker import SiteSetup
from tests.flower.grids import DirectGrid

NAME = "Dataset001_Demo"


def make_planned(folder: Path) -> None:
    """The tiny demo dataset in ``folder / "raw"``, planned for the random tiny model in ``folder / "preprocessed"``; the environment
    must point there."""
    make_demo_dataset(folder / "raw" / NAME, size="tiny")
    assert plan_and_preprocess(["-m", "tiny_random", "-np", "1", "--privacy_floor", "1"]) == 0
    path = folder / "preprocessed" / NAME / "plans.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["training"] |= {"effective_batch": 4, "local_steps": 2, "rounds": 1}
    path.write_text(json.dumps(plans), encoding="utf-8")


class DirectSimulation:
    """Takes the place of ``simulate``; knows which runs it trained, and fails where it is told to."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.broken: str | None = None

    def __call__(self, setups: Sequence[SiteSetup], server: Callable[[Grid, threading.Event], None], *, workers: int) -> None:
        run = setups[0].state_folder.parents[2].name
        if run == self.broken:
            raise RuntimeError(f"the machine of {run} is on fire")
        self.trained.append(run)
        server(DirectGrid(sorted(setups, key=lambda setup: setup.site)), threading.Event())
