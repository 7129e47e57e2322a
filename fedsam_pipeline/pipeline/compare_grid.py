"""The grid of ``fedsam_compare``: which runs make up which row, checked before anything is trained."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline.train import TrainingRun
from fedsam_pipeline.pipeline.train_request import RunSetup, TrainRequest, run_setups
from fedsam_pipeline.specs.comparison import MethodGrid, Protocol
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe, load_recipe

log = logging.getLogger(__name__)
AGGREGATED: tuple[Protocol, ...] = ("federated", "leave_one_site_out")
"""protocols in which updates of several sites are aggregated; the others train one site, where no strategy makes a difference"""


@dataclass(frozen=True)
class CompareRequest:
    """The flags of ``fedsam_compare``; ``None`` leaves a value to the plan.

    Attributes:
        grids: the methods.
        steps: optimizer steps a site takes under ``local``, ``federated`` and ``leave_one_site_out``; all sites' together under
            ``centralized``.
        local_steps: of a round.
        seeds: how many training seeds: 0, 1, ...
        folds: each is trained and scored; the table is on the validation cases of all.
    """

    grids: tuple[MethodGrid, ...]
    seeds: int = 1
    steps: int | None = None
    local_steps: int | None = None
    folds: tuple[str, ...] = ("0",)
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
    def recipe(self) -> Recipe:
        """With the aggregation and the wire of this row."""
        return self.setups[0][0].model.recipe

    @property
    def learning_rate(self) -> float:
        """At the peak."""
        return self.setups[0][0].schedule.peak_learning_rate

    @property
    def random_encoder(self) -> bool:
        """Whether this is the control experiment."""
        return self.requests[0].random_encoder

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
    """All rows on one fold, in the order of the flags; the first is what the others are compared with."""

    fold: str
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


def comparison_grids(preprocessed: Path, results: Path, request: CompareRequest) -> tuple[ComparisonGrid, ...]:
    """Resolves the flags, fold by fold; of each fold the rows are the same. Nothing is trained or written.

    Args:
        preprocessed: folder of the planned dataset.
        results: root of all results.
        request: the flags.

    Raises:
        FedsamError: a flag does not fit, or a folder holds a run with other settings.
    """
    _check(request)
    grids = tuple(_grid(preprocessed, results, request, fold) for fold in request.folds)
    _check_folders([method for grid in grids for method in grid.methods])
    _check_cases(grids)
    return grids


def _grid(preprocessed: Path, results: Path, request: CompareRequest, fold: str) -> ComparisonGrid:
    rounds, local_steps, notes = _schedule(preprocessed, results, request, fold)
    methods = [method for grid in request.grids for method in _methods(preprocessed, results, request, grid, fold, rounds, local_steps)]
    names = [method.name for method in methods]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise FedsamError("a method stands twice in the comparison", found=", ".join(twice), fix="leave it out once")
    if any(len(grid.strategies) > 1 or len(grid.wires) > 1 for grid in request.grids) and not all(method.aggregates for method in methods):
        notes = (*notes, "local and centralized train one site and were run once: no strategy or wire makes a difference there")
    return ComparisonGrid(fold, tuple(methods), rounds, local_steps, notes)


def _methods(
    preprocessed: Path, results: Path, request: CompareRequest, grid: MethodGrid, fold: str, rounds: int, local_steps: int
) -> Iterator[Method]:
    """The rows of one grid."""
    for recipe, rate, protocol in product(grid.recipes, grid.learning_rates or (None,), grid.protocols):
        aggregates = protocol in AGGREGATED
        strategies, wires = (grid.strategies or (None,), grid.wires or (None,)) if aggregates else ((None,), (None,))
        for strategy, wire in product(strategies, wires):
            requests = tuple(
                TrainRequest(
                    recipe=recipe,
                    plans_name=request.plans_name,
                    fold=fold,
                    protocol=protocol,
                    strategy=None if strategy is None else strategy.partition("+")[0],
                    lora_method=None if strategy is None else strategy.partition("+")[2] or None,
                    learning_rate=rate,
                    wire=wire,
                    random_encoder=grid.random_encoder,
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
            said = (strategy, wire, None if rate is None else f"lr{rate:g}", "random_encoder" if grid.random_encoder else None)
            words = (setups[0][0].model.recipe.name, protocol, *(word for word in said if word is not None))
            yield Method(" ".join(words), requests, setups)


def _check(request: CompareRequest) -> None:
    if "all" in request.folds:
        raise FedsamError(
            "fold all leaves no case that no training saw", found="-f all", expected="a numbered fold", fix="-f 0, for example"
        )
    _check_different("-f", request.folds)
    for grid in request.grids:
        for key in ("recipes", "protocols", "strategies", "wires", "learning_rates"):
            _check_different(key, [str(value) for value in getattr(grid, key)])
    files: dict[str, str] = {}
    for recipe in dict.fromkeys(recipe for grid in request.grids for recipe in grid.recipes):
        name = load_recipe(recipe).name
        if name in files:
            raise FedsamError(
                "two recipes have one name and would be trained in one folder",
                found=f"{files[name]}, {recipe}: {name}",
                fix="change name in one of the files",
            )
        files[name] = recipe


def _check_different(key: str, values: Sequence[str]) -> None:
    if not all(values) or len(set(values)) < len(values):
        raise FedsamError(f"{key} is not a list of different names", found=",".join(values), expected="a,b", fix=f"mend {key}")


def _schedule(preprocessed: Path, results: Path, request: CompareRequest, fold: str) -> tuple[int, int, tuple[str, ...]]:
    """Rounds, steps of a round, and what to say where the steps do not divide into rounds."""
    probe = TrainRequest(recipe=request.grids[0].recipes[0], plans_name=request.plans_name, fold=fold, device=request.device)
    planned = run_setups(preprocessed, results, probe)[0].model.plans.training
    local_steps = request.local_steps or planned.local_steps
    if request.steps is None:
        return planned.rounds, local_steps, ()
    if request.steps < local_steps:
        return 1, request.steps, (f"{request.steps} steps are less than the {local_steps} of a round: 1 round of {request.steps}",)
    rounds, rest = divmod(request.steps, local_steps)
    said = f"{request.steps} steps do not divide into rounds of {local_steps}: {rounds} rounds, {rounds * local_steps} steps a site"
    return rounds, local_steps, (said,) if rest else ()


def _check_cases(grids: Sequence[ComparisonGrid]) -> None:
    seen: dict[str, str] = {}
    for grid in grids:
        if twice := [case for case in grid.validation_cases if case in seen]:
            raise FedsamError(
                "two folds validate the same cases",
                found=f"{len(twice)} of fold {grid.fold} stand in fold {seen[twice[0]]} too",
                expected="each case once in the table",
                fix="leave one of the folds out",
            )
        seen |= dict.fromkeys(grid.validation_cases, grid.fold)


def _check_folders(methods: list[Method]) -> None:
    rows: dict[Path, str] = {}
    for method in methods:
        for _, setup in method.runs:
            if setup.folder in rows:
                raise FedsamError(
                    "two methods are the same run",
                    path=setup.folder,
                    found=f"{rows[setup.folder]}; {method.name}",
                    fix="leave one of them out: what it names is what the recipe says anyway",
                )
            rows[setup.folder] = method.name
    for method in methods:
        for request, setup in method.runs:
            try:
                TrainingRun(setup, request)
            except FedsamError as error:
                fix = "use the steps of that run, --overwrite to start all runs of this comparison over, or another $fedsam_results"
                raise FedsamError(error.what, path=error.path, found=error.found, expected=error.expected, fix=fix) from error
