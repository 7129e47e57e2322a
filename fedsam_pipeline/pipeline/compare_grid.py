"""The grid of ``fedsam_compare``: which runs make up which row, checked before anything is trained."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline.train import TrainingRun
from fedsam_pipeline.pipeline.train_request import Protocol, RunSetup, TrainRequest, run_setups
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe

log = logging.getLogger(__name__)
PROTOCOLS: dict[str, Protocol] = {name: name for name in get_args(Protocol)}
AGGREGATED: tuple[Protocol, ...] = ("federated", "leave_one_site_out")
"""protocols in which updates of several sites are aggregated; the others train one site, where no strategy makes a difference"""
ONE_SITE_STRATEGY = "fedavg"


@dataclass(frozen=True)
class CompareRequest:
    """The flags of ``fedsam_compare``; ``None`` leaves a value to the plan.

    Attributes:
        steps: optimizer steps a site takes under ``local``, ``federated`` and ``leave_one_site_out``; all sites' together under
            ``centralized``.
        local_steps: of a round.
        seeds: how many training seeds: 0, 1, ...
    """

    recipes: tuple[str, ...]
    protocols: tuple[str, ...] = ("federated",)
    strategies: tuple[str, ...] = ("fedavg",)
    seeds: int = 1
    steps: int | None = None
    local_steps: int | None = None
    fold: str = "0"
    plans_name: str = "plans"
    device: str = "auto"
    workers: int | None = None
    gpu_memory_target: float | None = None
    """GiB"""
    overwrite: bool = False


@dataclass(frozen=True)
class Method:
    """One row of the table. For each training seed a request and the runs that it consists of."""

    name: str
    requests: tuple[TrainRequest, ...]
    setups: tuple[tuple[RunSetup, ...], ...]

    @property
    def protocol(self) -> Protocol:
        """Of all its runs."""
        return self.requests[0].protocol

    @property
    def aggregates(self) -> bool:
        """Whether several sites exchange updates."""
        return self.protocol in AGGREGATED

    @property
    def runs(self) -> Iterator[tuple[TrainRequest, RunSetup]]:
        """All of them, seed by seed."""
        return ((request, setup) for request, setups in zip(self.requests, self.setups, strict=True) for setup in setups)


@dataclass(frozen=True)
class ComparisonGrid:
    """All rows, in the order of the flags; the first is what the others are compared with."""

    methods: tuple[Method, ...]
    rounds: int
    local_steps: int
    notes: tuple[str, ...]

    @property
    def plans(self) -> Plans:
        """The plan of all runs."""
        return self.methods[0].setups[0][0].model.plans

    @property
    def sites(self) -> tuple[str, ...]:
        """All sites of the dataset, sorted."""
        return tuple(sorted(set(self.methods[0].setups[0][0].sites[0].owner.values())))

    @property
    def validation_cases(self) -> list[str]:
        """The fold's, of all sites, sorted."""
        return sorted({case for setup in self.methods[0].setups[0] for site in setup.all_sites for case in site.val_cases})


def comparison_grid(preprocessed: Path, results: Path, request: CompareRequest) -> ComparisonGrid:
    """Resolves the flags. Nothing is trained or written.

    Args:
        preprocessed: folder of the planned dataset.
        results: root of all results.
        request: the flags.

    Raises:
        FedsamError: a flag does not fit, or a folder holds a run with other settings.
    """
    _check_lists(request)
    rounds, local_steps, notes = _schedule(preprocessed, results, request)
    methods = []
    for recipe in request.recipes:
        for protocol in (PROTOCOLS[name] for name in request.protocols):
            aggregates = protocol in AGGREGATED
            for strategy in request.strategies if aggregates else (ONE_SITE_STRATEGY,):
                requests = tuple(
                    TrainRequest(
                        recipe=recipe,
                        plans_name=request.plans_name,
                        fold=request.fold,
                        protocol=protocol,
                        strategy=strategy.partition("+")[0],
                        lora_method=strategy.partition("+")[2] or None,
                        rounds=rounds,
                        local_steps=local_steps,
                        val_every=0,  # the last round counts; scores in between would cost time and decide nothing
                        seed=seed,
                        device=request.device,
                        workers=request.workers,
                        gpu_memory_target=request.gpu_memory_target,
                        resume=not request.overwrite,
                        overwrite=request.overwrite,
                    )
                    for seed in range(request.seeds)
                )
                setups = tuple(tuple(run_setups(preprocessed, results, each)) for each in requests)
                words = (setups[0][0].model.recipe.name, protocol, *((strategy,) if aggregates else ()))
                methods.append(Method(" ".join(words), requests, setups))
    _check_folders(methods)
    if len(request.strategies) > 1 and not all(method.aggregates for method in methods):
        notes = (*notes, "local and centralized train one site and were run once: no strategy makes a difference there")
    return ComparisonGrid(tuple(methods), rounds, local_steps, notes)


def _check_lists(request: CompareRequest) -> None:
    for flag, values in (("recipes", request.recipes), ("protocols", request.protocols), ("strategies", request.strategies)):
        if not all(values) or len(set(values)) < len(values):
            raise FedsamError(f"--{flag} is not a list of different names", found=",".join(values), expected="a,b", fix=f"mend --{flag}")
    unknown = [name for name in request.protocols if name not in PROTOCOLS]
    if unknown:
        raise FedsamError("unknown protocol", found=", ".join(unknown), expected=f"some of {', '.join(PROTOCOLS)}", fix="mend --protocols")
    if request.fold == "all":
        raise FedsamError(
            "fold all leaves no case that no training saw", found="-f all", expected="a numbered fold", fix="-f 0, for example"
        )
    names = [load_recipe(recipe).name for recipe in request.recipes]
    if len(set(names)) < len(names):
        raise FedsamError(
            "two recipes have one name and would be trained in one folder",
            found=", ".join(f"{recipe}: {name}" for recipe, name in zip(request.recipes, names, strict=True)),
            fix="change name in one of the files",
        )


def _schedule(preprocessed: Path, results: Path, request: CompareRequest) -> tuple[int, int, tuple[str, ...]]:
    """Rounds, steps of a round, and what to say where the steps do not divide into rounds."""
    probe = TrainRequest(recipe=request.recipes[0], plans_name=request.plans_name, fold=request.fold, device=request.device)
    planned = run_setups(preprocessed, results, probe)[0].model.plans.training
    local_steps = request.local_steps or planned.local_steps
    if request.steps is None:
        return planned.rounds, local_steps, ()
    if request.steps < local_steps:
        return 1, request.steps, (f"{request.steps} steps are less than the {local_steps} of a round: 1 round of {request.steps}",)
    rounds, rest = divmod(request.steps, local_steps)
    said = f"{request.steps} steps do not divide into rounds of {local_steps}: {rounds} rounds, {rounds * local_steps} steps a site"
    return rounds, local_steps, (said,) if rest else ()


def _check_folders(methods: list[Method]) -> None:
    for method in methods:
        for request, setup in method.runs:
            try:
                TrainingRun(setup, request)
            except FedsamError as error:
                fix = "use the steps of that run, --overwrite to start all runs of this comparison over, or another $fedsam_results"
                raise FedsamError(error.what, path=error.path, found=error.found, expected=error.expected, fix=fix) from error
