"""A few steps of a run in a folder that is deleted again: what its sites, its messages and its processes take."""

import math
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.audit_heads import AuditHeads
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.codec.downlink import Downlink
from fedsam_pipeline.federation.strategy_settings import streams
from fedsam_pipeline.flower.aggregator import Aggregator
from fedsam_pipeline.flower.messages import BUSY_SECONDS, VALIDATION_SECONDS
from fedsam_pipeline.flower.replies import SiteFailed
from fedsam_pipeline.flower.round_loop import RoundLoop
from fedsam_pipeline.flower.rounds import RoundPlan, RoundRecord
from fedsam_pipeline.flower.simulation import Grid, simulate
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.flower.work_clock import longest_first
from fedsam_pipeline.model.build import AdaptedModel
from fedsam_pipeline.pipeline.peak_memory import own_peak_bytes, worker_peak_bytes
from fedsam_pipeline.pipeline.train_request import RunSetup
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.training.local_trainer import RunSchedule
from fedsam_pipeline.training.slab_loader import slabs_per_step

ROUNDS, STEPS = 2, 3
"""of a probe; fewer steps where the run takes fewer. The first round warms the workers up; the second is measured"""
SITES_A_WORKER = 2
"""sites that take part, where updates need not all be there for the strategy"""


@dataclass(frozen=True)
class StepCosts:
    """What training takes a site, with all workers busy; seconds.

    Attributes:
        step_seconds: an optimizer step; under a recipe with ``[cache]``, on slabs that were seen before.
        slab_seconds: what a slab of the pool of such a recipe takes the first time it is seen, beyond that; 0 for other recipes.
        compile_seconds: what compiling adds to a worker's first steps; 0 without.
    """

    step_seconds: float
    slab_seconds: float
    compile_seconds: float


@dataclass(frozen=True)
class Probe(StepCosts):
    """What was measured; seconds and bytes.

    Attributes:
        sites: that took part.
        import_seconds: from the command's start until the simulation is started.
        start_up_seconds: from there until the first site works.
        end_seconds: from the server's last word until the workers are gone.
        voxel_seconds: scoring one voxel of the plan's grid by one model; 0 where there is no validation case.
        models: that a site scores at the end: 2 where it has one of its own.
        site_seconds: what a round takes a site beyond its steps: state, coding.
        exchange_seconds: what a round takes beyond its sites: aggregation, checkpoint, waiting.
        bytes_up, bytes_down: a site's message of a round; down, of one after the first.
        first_bytes_down: the first round's, which says that nothing has changed yet.
        final_bytes_up, final_bytes_down: of the final evaluation.
        worker_bytes, server_bytes: peak resident memory of a process; ``None`` where the system does not tell.
    """

    sites: int
    import_seconds: float
    start_up_seconds: float
    end_seconds: float
    voxel_seconds: float
    models: int
    site_seconds: float
    exchange_seconds: float
    bytes_up: float
    bytes_down: float
    first_bytes_down: float
    final_bytes_up: float
    final_bytes_down: float
    worker_bytes: int | None
    server_bytes: int | None


def probe(setup: RunSetup, *, started: float) -> Probe:
    """Trains some of a run's sites for a few steps, with the run's own workers, messages and aggregation.

    Args:
        setup: of the run. Its folder is not touched: what is written lies beside it, under a name with a dot, and is deleted.
        started: when the command was, by ``time.perf_counter``.

    Raises:
        FedsamError: the recipe does not fit, or a site cannot work.
    """
    Aggregator(setup.model.recipe.aggregation, len(setup.sites))  # a strategy that makes no sense with so many sites
    place = next(folder for folder in setup.folder.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".dry_run_", dir=place) as name:
        sites = tuple(_in_folder(site, Path(name)) for site in _chosen(setup))
        run = _ProbeRun(replace(setup, sites=sites), Path(name))
        try:
            return run.measure(started)
        except SiteFailed as error:
            raise FedsamError(
                "the probe of a dry run failed",
                found=str(error),
                expected="every site to answer",
                fix="start the run without --dry_run, and see that site's log",
            ) from error


def _chosen(setup: RunSetup) -> list[SiteSetup]:
    aggregation = setup.model.recipe.aggregation
    number = len(setup.sites)
    if streams(aggregation.strategy, aggregation.lora_method):
        number = min(number, SITES_A_WORKER * setup.workers)
    return [setup.sites[at * len(setup.sites) // number] for at in range(number)]


def _in_folder(site: SiteSetup, folder: Path) -> SiteSetup:
    """The site with one validation case, and with all that it writes in ``folder``."""
    return replace(
        site,
        val_cases=site.val_cases[:1],
        state_folder=folder / "sites" / site.site,
        execution_file=folder / "execution" / f"{site.site}.json",
        other_folds={},
    )


class _ProbeRun:
    """Two short rounds and a final evaluation."""

    def __init__(self, setup: RunSetup, folder: Path) -> None:
        self._setup, self._folder = setup, folder
        self._steps = min(STEPS, setup.schedule.local_steps)
        self._adapted: AdaptedModel = setup.model.build()
        self._records: list[RoundRecord] = []
        self._recorded: list[float] = []
        self._final: dict[str, Any] = {}

    def measure(self, started: float) -> Probe:
        launched = time.perf_counter()
        simulate(self._setup.sites, self._serve, workers=self._setup.workers)
        gone = time.perf_counter()
        first, second = (record.communication["sites"].values() for record in self._records)
        sites = self._records[1].progress["sites"].values()
        busy = [site[BUSY_SECONDS] for site in sites]
        own = [site["seconds"] + site[VALIDATION_SECONDS] for site in sites]
        final = self._final["sites"].values()
        costs = step_costs([record.progress["sites"] for record in self._records], self._setup.sites, self._steps)
        return Probe(
            **asdict(costs),
            sites=len(sites),
            import_seconds=launched - started,
            start_up_seconds=self._began - launched,
            end_seconds=gone - self._served,
            voxel_seconds=self._voxel_seconds(),
            models=self._models,
            site_seconds=fmean(busy) - fmean(own),
            exchange_seconds=max(0.0, self._recorded[1] - self._recorded[0] - longest_first(busy, self._setup.workers)),
            bytes_up=_mean(second, "up"),
            bytes_down=_mean(second, "down"),
            first_bytes_down=_mean(first, "down"),
            final_bytes_up=_mean(final, "up"),
            final_bytes_down=_mean(final, "down"),
            worker_bytes=self._worker_bytes,
            server_bytes=own_peak_bytes(),
        )

    def _serve(self, grid: Grid, stop: threading.Event) -> None:
        setup, aggregation = self._setup, self._setup.model.recipe.aggregation
        travelling = {entry.name for entry in self._adapted.manifest.federated}
        tensors = {name: tensor for name, tensor in self._adapted.trained_tensors().items() if name in travelling}
        plan = RoundPlan(
            run_id="dry run",
            schedule=RunSchedule(ROUNDS, self._steps, setup.schedule.peak_learning_rate, setup.schedule.seed),
            val_every=1,
            agreement=setup.model.agreement(),
            sites=tuple(site.site for site in setup.sites),
            class_names=tuple(setup.sites[0].labels.scored),
            recipe=setup.model.recipe,
            wire=aggregation.wire,
            window=setup.workers + 1,
        )
        checkpoints = CheckpointSeries(self._folder / "checkpoints", "round_")
        downlink = Downlink(aggregation.wire, tensors)
        aggregator = Aggregator(aggregation, len(setup.sites))
        loop = RoundLoop(
            grid, aggregator, plan, self._adapted.manifest, checkpoints, downlink, self._record, AuditHeads(self._folder), stop
        )
        tensors = loop.run(tensors, 0)
        before = loop.clock.site_seconds
        self._final = loop.evaluate(tensors).traffic
        self._scoring_seconds = loop.clock.site_seconds - before
        assert loop.clock.began is not None  # every site has answered
        self._began = loop.clock.began
        self._worker_bytes = worker_peak_bytes()
        self._served = time.perf_counter()

    def _record(self, record: RoundRecord) -> None:
        self._records.append(record)
        self._recorded.append(time.perf_counter())

    def _voxel_seconds(self) -> float:
        voxels = sum(sum(case_voxels(site)) for site in self._setup.sites)
        return self._scoring_seconds / self._models / voxels if voxels else 0.0

    @property
    def _models(self) -> int:
        return 2 if self._adapted.manifest.personal else 1


def step_costs(rounds: Sequence[Mapping[str, Mapping[str, float]]], sites: Sequence[SiteSetup], steps: int) -> StepCosts:
    """What two rounds say of all those to come.

    New slabs are told from a step by the time for data, of the second round if that saw any: the first warms up. What a kept slab takes to
    be read again is then not in a step; it is little beside the step.

    Args:
        rounds: the first two of a run: site to the numbers that came with its update.
        sites: of the run.
        steps: of a round.
    """
    new = [
        sum(seen_slabs(site, steps * (at + 1)) - seen_slabs(site, steps * at) for site in sites if site.site in each)
        for at, each in enumerate(rounds)
    ]
    total, data = ([sum(site[key] for site in each.values()) for each in rounds] for key in ("seconds", "data_seconds"))
    measured = 1 if new[1] else 0
    slab_seconds = data[measured] / new[measured] if new[measured] else 0.0
    compile_seconds = 0.0
    if sites[0].compiled:  # on all workers at once, by the first site of each
        first, second = rounds
        slower = max(first[name]["seconds"] - second[name]["seconds"] for name in second)
        compile_seconds = max(0.0, slower - slab_seconds * (new[0] - new[1]) / len(sites))
    return StepCosts((total[1] - slab_seconds * new[1]) / (len(rounds[1]) * steps), slab_seconds, compile_seconds)


def seen_slabs(site: SiteSetup, steps: int) -> int:
    """Slabs of a site's pool that its first so many steps see; 0 for a recipe without ``[cache]``, which keeps nothing of them."""
    model = site.model
    if model.recipe.cache is None:
        return 0
    return min(steps * slabs_per_step(model.plans), model.recipe.cache.slabs_per_case * len(site.train_cases))


def case_voxels(site: SiteSetup) -> list[int]:
    """Voxels of each validation case of a site, on the plan's grid."""
    store = CaseStore(site.store_folder)
    return [math.prod(store.open(name).labels.shape) for name in site.val_cases]


def _mean(sites: Any, way: str) -> float:
    entries: list[Mapping[str, Any]] = list(sites)
    return fmean(entry[way]["bytes_message"] for entry in entries)
