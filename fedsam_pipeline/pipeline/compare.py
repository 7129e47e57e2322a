"""``fedsam_compare``: trains a grid of methods, scores all of them on the same cases, writes one table."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.files import read_json
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.model.device import choose_device
from fedsam_pipeline.paths import dataset_id
from fedsam_pipeline.pipeline.compare_files import comparison_markdown, write_comparison
from fedsam_pipeline.pipeline.compare_grid import CompareRequest, ComparisonGrid, Method, comparison_grids
from fedsam_pipeline.pipeline.compare_scores import ModelScores, ScoredCases, scores_of
from fedsam_pipeline.pipeline.compare_table import MethodResult, Traffic, compare_methods, mean_traffic, pool_folds, traffic_of
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.pipeline.train_request import RunSetup
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.specs.recipe import Recipe

log = logging.getLogger(__name__)
SEVERAL_FOLDS = "several folds: what was chosen on a part of these cases, as on fold 0-inner, has seen them; read differences, not accuracy"


def compare(preprocessed: Path, raw: Path, results: Path, request: CompareRequest, output: Path | None = None) -> int:
    """Runs the grid, continuing what an earlier call left, and writes the comparison.

    Args:
        preprocessed: folder of the planned dataset.
        raw: root of the raw datasets: masks are scored on the images' own grid.
        results: root of all results.
        request: the flags.
        output: folder of ``comparison.json``, ``.csv``, ``.md`` and ``.png``; ``None``: ``comparison__PLANS__fold_K`` (of several
            ``folds_K_L``) in the dataset's results.

    Returns:
        0, or 1 where some runs failed: they are named, and their methods are missing in the table.

    Raises:
        FedsamError: a flag does not fit, a fold validates nothing, a folder holds a run with other settings (all this before anything is
            trained), or every method failed.
    """
    grids = comparison_grids(preprocessed, results, request)
    cases = [_scored_cases(preprocessed, raw, grid) for grid in grids]
    sites = [site for of_fold in cases for site in of_fold.sites]
    notes = dict.fromkeys(note for grid in grids for note in grid.notes)
    for note in notes:
        print(note)
    word = "fold" if len(grids) == 1 else "folds"
    folder = output or results / preprocessed.name / f"comparison__{request.plans_name}__{word}_{'_'.join(request.folds)}"
    with log_file(folder / "logs", "fedsam_compare"), logging_redirect_tqdm():
        failures = _train([method for grid in grids for method in grid.methods])
        complete = [row for row in zip(*(grid.methods for grid in grids), strict=True) if not _failed(row, failures)]
        if not complete:
            first, reason = next(iter(failures.items()))
            raise FedsamError("no method could be trained", path=first, found=reason, fix="see the logs of the runs")
        found = [pool_folds([_result(*of_fold, request.device) for of_fold in zip(row, cases, strict=True)]) for row in complete]
        record = {
            "schema_version": 1,
            "dataset": preprocessed.name,
            "plans_name": request.plans_name,
            "base_model": grids[0].plans.base_model,
            "fold": " ".join(request.folds),
            "grid": "native",
            "rounds": grids[0].rounds,
            "local_steps": grids[0].local_steps,
            "steps_a_site": grids[0].rounds * grids[0].local_steps,
            **compare_methods(found, sites),
            "failures": [{"run": run, "reason": reason} for run, reason in failures.items()],
            "notes": [*notes, *_few_cases(grids[0].sites, sites), *([] if len(grids) == 1 else [SEVERAL_FOLDS])],
        }
        write_comparison(folder, record)
    print(comparison_markdown(record))
    print(f"written: {folder / 'comparison.json'}, and .csv, .md, .png beside it")
    return EXIT_SOME_FAILED if failures else EXIT_DONE


def _scored_cases(preprocessed: Path, raw: Path, grid: ComparisonGrid) -> ScoredCases:
    """The fold's validation cases of all sites.

    Raises:
        FedsamError: there is none, or the raw dataset is missing or lacks some.
    """
    names = grid.validation_cases
    if not names:
        raise FedsamError("the fold has no validation case", path=preprocessed / "splits_final.json", fix="use another -f")
    dataset = load_raw_dataset(raw / preprocessed.name)
    lost = sorted(set(names) - set(dataset.cases))
    if lost:
        raise FedsamError(
            "the raw dataset lacks cases of the fold",
            path=dataset.folder,
            found=", ".join(lost[:5]),
            expected="the images and masks that were preprocessed",
            fix=f"bring them back, or fedsam_plan_and_preprocess -d {dataset_id(preprocessed.name)}",
        )
    return ScoredCases.of(dataset, CaseStore(store_folder(preprocessed, grid.plans)), names)


def _failed(row: Sequence[Method], failures: Mapping[str, str]) -> bool:
    return any(str(setup.folder) in failures for method in row for _, setup in method.runs)


def _few_cases(sites: Sequence[str], of_cases: Sequence[str]) -> list[str]:
    without = [site for site in sites if of_cases.count(site) == 0]
    single = [site for site in sites if of_cases.count(site) == 1]
    notes = [f"no validation case, so not in the table: {', '.join(without)}"] if without else []
    return [*notes, *([f"one case has no spread, so intervals are too narrow: {', '.join(single)}"] if single else [])]


def _train(methods: Sequence[Method]) -> dict[str, str]:
    """Trains what is not done; folder to reason of the runs that failed."""
    failures: dict[str, str] = {}
    runs = [(method.name, request, setup) for method in methods for request, setup in method.runs]
    for number, (name, request, setup) in enumerate(runs, start=1):
        print(f"[{number}/{len(runs)}] {name}, {setup.folder.parent.name}", flush=True)
        try:
            train_all([setup], request)
        except Exception as error:  # the others go on; what failed is in the table's notes, the exit code and the log
            failures[str(setup.folder)] = str(error) or type(error).__name__
            log.error("FAILED %s: %s", setup.folder, error, exc_info=not isinstance(error, FedsamError))
    return failures


def _result(method: Method, cases: ScoredCases, device: str) -> MethodResult:
    """Scores the models of one row and collects what they cost."""
    chosen_device = choose_device(device)
    scored = [{_scores_site(setup): scores_of(setup.folder, cases, chosen_device) for setup in setups} for setups in method.setups]
    chosen = [_by_own_model(models, cases) for models in scored]
    states = [[read_json(setup.folder / "run.json") for setup in setups] for setups in method.setups]
    peaks = [state.get("peak_memory_bytes") for of_seed in states for state in of_seed]
    alone = sorted(site for site in scored[0] if method.protocol == "local" and site is not None)
    return MethodResult(
        name=method.name,
        recipe=method.recipe.name,
        protocol=method.protocol,
        strategy=_strategy(method.recipe) if method.aggregates else None,
        wire=method.recipe.aggregation.wire if method.aggregates else None,
        learning_rate=method.learning_rate,
        random_encoder=method.random_encoder,
        dice=np.stack([scores.dice for scores in chosen]),
        hd95=np.stack([scores.hd95 for scores in chosen]),
        missing=np.stack([scores.missing for scores in chosen]),
        traffic=_traffic(method) if method.aggregates else None,
        seconds=float(np.mean([sum(state["seconds"] for state in of_seed) for of_seed in states])),
        peak_memory=max((peak for peak in peaks if peak is not None), default=None),
        elsewhere={site: np.stack([models[site].dice for models in scored]) for site in alone},
    )


def _strategy(recipe: Recipe) -> str:
    """As ``--strategies`` takes it."""
    return "+".join(part for part in (recipe.aggregation.strategy, recipe.aggregation.lora_method) if part)


def _scores_site(setup: RunSetup) -> str | None:
    """The site whose cases this run's model is in the table for; ``None`` for all."""
    if setup.held_out is not None:
        return setup.held_out.site
    return setup.sites[0].site if setup.protocol == "local" else None


def _by_own_model(models: dict[str | None, ModelScores], cases: ScoredCases) -> ModelScores:
    """Each case by the model that is in the table for its site."""
    of_case = [models[site] if site in models else models[None] for site in cases.sites]
    return ModelScores(
        *(np.stack([getattr(model, part)[index] for index, model in enumerate(of_case)]) for part in ("dice", "hd95", "missing"))
    )


def _traffic(method: Method) -> Traffic:
    return mean_traffic([traffic_of(read_json(setup.folder / "communication.json")) for _, setup in method.runs])
