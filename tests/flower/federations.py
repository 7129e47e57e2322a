"""A federation of tiny sites in this process: its setups, its model, its round loop."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.downlink import Downlink
from fedsam_pipeline.federation.encrypted_sums import KEY_FILE
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.private_rounds import PrivateRounds
from fedsam_pipeline.flower.round_loop import RoundLoop
from fedsam_pipeline.flower.rounds import RoundPlan, RoundRecord
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.model.build import AdaptedModel, ModelSetup, build_adapted
from fedsam_pipeline.pipeline.simulated_keys import make_simulated_keys
from fedsam_pipeline.specs.manifest import Wire
from fedsam_pipeline.specs.privacy_budget import PrivacyBudget
from fedsam_pipeline.specs.recipe import Recipe, Weighting, load_recipe
from fedsam_pipeline.training.local_trainer import RunSchedule
from tests.conftest import make_tiny_plans
from tests.flower.grids import DirectGrid
from tests.training.stores import write_store

SITES = {"site_a": 3, "site_b": 2, "site_c": 1}
SCHEDULE = RunSchedule(rounds=3, local_steps=2, peak_learning_rate=2e-3, seed=3)


def setups(folder: Path, sites: dict[str, int] = SITES, recipe: Recipe | None = None) -> list[SiteSetup]:
    """Sites with so many training cases each, and one for validation; their stores are written where they are not."""
    plans = make_tiny_plans()
    made = []
    for index, (site, count) in enumerate(sites.items()):
        cases = [f"{site}_{i}" for i in range(count + 1)]
        store = folder / "store" / site
        if not store.exists():
            write_store(store, cases, seed=index, site=site, offset=0.3 * index)
        made.append(
            SiteSetup(
                site=site,
                store_folder=store,
                train_cases=tuple(cases[:-1]),
                val_cases=tuple(cases[-1:]),
                owner=dict.fromkeys(cases, site),
                model=ModelSetup(plans, recipe or load_recipe("flap_sam"), None),
                state_folder=folder / "sites" / site,
                device="cpu",
                num_threads=1,
                execution_file=folder / "execution" / f"{site}.json",
            )
        )
    return made


def model(recipe: Recipe | None = None) -> AdaptedModel:
    """What the sites of ``setups`` build."""
    return build_adapted("tiny_random", recipe or load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None)


def start(adapted: AdaptedModel) -> dict[str, torch.Tensor]:
    """Copies of the tensors that travel."""
    return {entry.name: adapted.trained_tensors()[entry.name].clone() for entry in adapted.manifest.federated}


class Federation:
    """A run in this process."""

    def __init__(
        self,
        folder: Path,
        sites: dict[str, int] = SITES,
        recipe: Recipe | None = None,
        val_every: int = 0,
        wire: Wire = "fp32",
        min_sites: int | None = None,
        budget: PrivacyBudget | None = None,
        encrypted: Weighting | None = None,
    ) -> None:
        """``min_sites``: names are registered, and answers waited for half a second. ``budget``: of differential privacy. ``encrypted``:
        how sites weigh what they encrypt."""
        self.setups = setups(folder, sites, recipe)
        if encrypted is not None:
            self.setups = [replace(setup, encryption_key=folder / "sites" / KEY_FILE) for setup in self.setups]
            make_simulated_keys(self.setups)
        self.grid = DirectGrid(self.setups)
        self.records: list[RoundRecord] = []
        self.adapted = model(recipe)
        self.checkpoints = CheckpointSeries(folder / "checkpoints", "round_")
        self.heads = AuditHeads(folder, None if min_sites is None else dict(enumerate(sites, start=1)))
        self.wire = wire
        plan = RoundPlan(
            "run",
            SCHEDULE,
            val_every,
            self.setups[0].model.agreement(),
            tuple(sites),
            ("organ", "lesion"),
            self.setups[0].model.recipe,
            min_sites,
            None if min_sites is None else 0.5,
            wire,
            encrypted=encrypted,
        )
        downlink = Downlink(wire, start(self.adapted))
        private = None
        if budget is not None:
            private = PrivateRounds(folder, budget, rounds=SCHEDULE.rounds, sites=len(sites))
        self.aggregator = Aggregator(self.setups[0].model.recipe.aggregation, plan.quorum, private)
        self.loop = RoundLoop(
            self.grid, self.aggregator, plan, self.adapted.manifest, self.checkpoints, downlink, self.records.append, self.heads
        )

    def run(self, rounds_done: int = 0) -> dict[str, torch.Tensor]:
        tensors = start(self.adapted)
        if rounds_done:
            self.loop._downlink, rest = Downlink.restored(self.wire, self.checkpoints.load(rounds_done))
            tensors = self.aggregator.restore(rest)
        return self.loop.run(tensors, rounds_done)

    def run_until(self, last: int) -> None:
        """The run is cut in a round whose records are written and whose checkpoint is not: all sites have trained it."""

        def on_round(record: RoundRecord) -> None:
            if record.progress["round"] == last:
                raise KeyboardInterrupt

        self.loop._on_round = on_round
        with pytest.raises(KeyboardInterrupt):
            self.run()


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
