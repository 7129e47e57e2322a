"""fedsam_plan_and_preprocess: fingerprints, plan, splits and the preprocessed store of one raw dataset."""

import json
import logging
import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.splits import load_splits, make_splits
from fedsam_pipeline.errors import EXIT_DONE, EXIT_SOME_FAILED, FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.logs import log_file
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.paths import dataset_id
from fedsam_pipeline.pipeline.clean import clean_stores
from fedsam_pipeline.pipeline.cost_table import cost_table
from fedsam_pipeline.pipeline.fingerprints import show_fingerprints, write_fingerprints
from fedsam_pipeline.pipeline.integrity import REPORT_FILE, verify_dataset, write_cheap_report
from fedsam_pipeline.pipeline.plans_file import changed_values, load_plans, set_aside, unedited_plan
from fedsam_pipeline.pipeline.target_spacing import check_target_spacing
from fedsam_pipeline.planning.decision import mm
from fedsam_pipeline.planning.fingerprint import case_failure, fingerprint_case
from fedsam_pipeline.planning.measures import SiteMeasures
from fedsam_pipeline.planning.rules import make_plan
from fedsam_pipeline.planning.table import plan_table
from fedsam_pipeline.preprocessing.budget import default_processes
from fedsam_pipeline.preprocessing.store import store_folder
from fedsam_pipeline.preprocessing.store_case import store_case
from fedsam_pipeline.preprocessing.workers import CaseWorkers
from fedsam_pipeline.specs.plans import Plans, check_plans_name

COMMAND = "fedsam_plan_and_preprocess"
DEFAULT_PLANS_NAME = "plans"
MEND_PLAN = "mend the file, or delete it to plan anew"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlanRequest:
    """What the user asked for: see the flags of the command."""

    base_model: str
    plans_name: str = DEFAULT_PLANS_NAME
    num_processes: int | None = None
    """``None``: as many as fit and pay off, see ``preprocessing.budget``"""
    preprocess: bool = True
    privacy_floor: int | None = None
    """patients that every number a site releases stands for; ``None``: the default, see ``pipeline.fingerprints``"""
    dry_run: bool = False
    """only show what would leave each site"""
    verify: bool = False
    """all integrity checks first, not only those that measuring makes anyway"""
    target_spacing: tuple[float, float, float] | None = None
    """mm, (z, y, x) in canonical axes, in place of the planned one; the plan needs a name of its own"""
    clean: bool = False
    """delete the plan's store, and those that no plan needs, before preprocessing"""


@dataclass
class StoreOutcome:
    """Cases that were preprocessed, kept from an earlier run, or failed."""

    folder: Path
    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def plan_and_preprocess(raw: Path, preprocessed_root: Path, request: PlanRequest) -> int:
    """Runs the stage and prints what it decided.

    Args:
        raw: the raw dataset's folder.
        preprocessed_root: where the dataset's preprocessed folder goes.
        request: the flags.

    Returns:
        Exit code: 0, or 1 where cases failed for reasons that are not the user's.

    Raises:
        FedsamError: the dataset, a flag or an output folder is not usable; nothing is half-written.
    """
    spec = base_model_spec(request.base_model)
    _check_request(request)
    dataset = load_raw_dataset(raw)
    folder = preprocessed_root / dataset.name
    _check_existing_plan(folder, dataset, request.plans_name)
    num_processes = request.num_processes or default_processes(dataset)
    splits_file = folder / "splits_final.json"
    if splits_file.exists():
        load_splits(splits_file, dataset.cases, dataset.patients)  # before the long work: splits that do not fit are the user's to mend
    with log_file(folder / "logs", COMMAND) as log_path, CaseWorkers(num_processes) as workers:
        measured = measure(dataset, folder, workers, verify=request.verify)
        if request.dry_run:
            show_fingerprints(dataset, measured, request.privacy_floor, folder)
            return EXIT_DONE
        unedited = unedited_plan(folder, request.plans_name)
        fingerprint = write_fingerprints(dataset, measured, request.privacy_floor, folder)
        if request.target_spacing is not None:
            check_target_spacing(fingerprint, request.target_spacing)
        made = make_plan(fingerprint, spec, plans_name=request.plans_name, target_spacing=request.target_spacing)
        plans = _kept_or_made(folder, made, unedited, spacing_chosen=request.target_spacing is not None)
        write_json(folder / "dataset.json", dataset_json(dataset))
        if not splits_file.exists():
            write_json(splits_file, make_splits(dataset.sites, dataset.patients))
        table = plan_table(plans, shutil.get_terminal_size((140, 24)).columns)
        log.debug("%s", table)
        print(f"{table}\n\n{cost_table(fingerprint, plans)}")
        print(f"\nwritten: {folder / request.plans_name}.json (fingerprints, splits and integrity.json beside it)")
        if not request.preprocess:
            print(f"next: {COMMAND} without --no_pp, to preprocess the cases")
            return EXIT_DONE
        if request.clean:
            gone = clean_stores(folder, plans)
            print(f"--clean deleted {', '.join(store.name for store in gone) or 'nothing: no store was there'}")
        outcome = fill_store(dataset, plans, folder, workers)
        _print_outcome(outcome, dataset, request, log_path)
    return EXIT_SOME_FAILED if outcome.failed else EXIT_DONE


def _check_request(request: PlanRequest) -> None:
    """Refuses flags that make no sense together."""
    check_plans_name(request.plans_name)
    if request.target_spacing is not None and request.plans_name == DEFAULT_PLANS_NAME:
        raise FedsamError(
            "a target spacing of your own needs a plan of its own",
            found=f"-overwrite_target_spacing for the plan {DEFAULT_PLANS_NAME}, which keeps what the rules give",
            expected="another name",
            fix="add -overwrite_plans_name NAME (or -p NAME, which is the same), and train with -p NAME",
        )
    if request.clean and (request.dry_run or not request.preprocess):
        raise FedsamError(
            "--clean without preprocessing would leave the plan without its store",
            found=f"--clean {'--dry_run' if request.dry_run else '--no_pp'}",
            fix="leave --clean out: fingerprints are measured anew in any case",
        )


def _check_existing_plan(folder: Path, dataset: RawDataset, name: str) -> None:
    """Refuses a plan on disk that was edited into something impossible, before the long work."""
    path, before = folder / f"{name}.json", folder / "dataset.json"
    if path.exists():
        same = before.exists() and read_json(before, fix=f"delete {before.name}; it is written again") == dataset_json(dataset)
        load_plans(path, fix=MEND_PLAN, labels=dataset.labels if same else None, channel_names=dataset.channel_names if same else None)


def _kept_or_made(folder: Path, made: Plans, unedited: Plans | None, *, spacing_chosen: bool) -> Plans:
    """The plan to use: the one on disk where somebody edited it for the same data and base model, else the new one, which is written.

    ``unedited``: see ``unedited_plan``; a plan of another origin that differs from it is set aside.
    """
    path = folder / f"{made.plans_name}.json"
    if path.exists():
        kept = Plans.load(path, fix=MEND_PLAN)
        same_origin = (kept.fingerprint_sha256, kept.base_model) == (made.fingerprint_sha256, made.base_model)
        if same_origin and kept.sha256() != made.sha256():
            load_plans(path, fix=MEND_PLAN, labels=made.labels, channel_names=[channel.name for channel in made.channels])
            if spacing_chosen and kept.target_spacing != made.target_spacing:
                raise FedsamError(
                    "there is a plan of this name with another target spacing",
                    path=path,
                    found=mm(kept.target_spacing),
                    expected=f"{mm(made.target_spacing)}, as -overwrite_target_spacing says",
                    fix="choose another name with -overwrite_plans_name, or delete the file",
                )
            where = ", ".join(changed_values(kept, made)) or "its reasons"
            print(f"{path} differs from what would be planned now in {where}: kept as it is (delete it to plan anew)")
            return kept
        if not same_origin:
            edited = unedited is None or kept.sha256() != unedited.sha256()
            what = f"it is kept as {set_aside(kept, folder).name}" if edited else "nobody had edited it, so it is planned anew"
            print(f"{path} was made for other data, another privacy floor or another base model: {what}")
    made.save(path)
    return made


def measure(dataset: RawDataset, folder: Path, workers: CaseWorkers, *, verify: bool) -> dict[str, SiteMeasures]:
    """Verifies and measures all cases, by site; writes ``integrity.json``."""
    verified = verify_dataset(dataset, folder, workers) if verify else None
    measured = {site: SiteMeasures(dataset.name, dataset.labels, dataset.channel_names) for site in dataset.sites}
    owner = {case: site for site, cases in dataset.sites.items() for case in cases}
    failed = []
    for outcome in workers.work(partial(fingerprint_case, dataset), dataset.cases, "fingerprint"):
        if outcome.result is not None:
            measured[owner[outcome.case]].add(outcome.result)
        else:
            failed.append(outcome)
    write_cheap_report(dataset, folder, failed, verified)
    if failed:
        raise case_failure(dataset.name, failed, number=dataset_id(dataset.name), report=folder / REPORT_FILE)
    return measured


def dataset_json(dataset: RawDataset) -> dict[str, Any]:
    """``dataset.json`` as later stages read it: the raw one, with labels, channels and sites spelled out."""
    content: dict[str, Any] = read_json(dataset.folder / "dataset.json")
    content.pop("dataset", None)  # paths of raw files: no later stage reads them
    plain = dataset.ignore_label is None and not dataset.regions
    return content | {
        "labels": dataset.labels if plain else content["labels"],  # regions and the ignore label stand in the raw form only
        "channel_names": {str(number): name for number, name in enumerate(dataset.channel_names)},
        "file_ending": dataset.file_ending,
        "sites": {site: list(cases) for site, cases in sorted(dataset.sites.items())},
    }


def fill_store(dataset: RawDataset, plans: Plans, folder: Path, workers: CaseWorkers) -> StoreOutcome:
    """Preprocesses all cases that the store lacks; a case that fails leaves the others unharmed."""
    outcome = StoreOutcome(store_folder(folder, plans))
    work = partial(store_case, dataset, plans=plans, folder=outcome.folder)
    first: FedsamError | None = None
    for each in workers.work(work, dataset.cases, "preprocess"):
        if each.error is not None:
            log.error("case %s failed: %s\n%s", each.case, each.error, each.trace)
            outcome.failed.append(each.case)
            if first is None and isinstance(each.error, FedsamError):
                first = each.error
        else:
            (outcome.made if each.result else outcome.kept).append(each.case)
    if first is not None and len(outcome.failed) == len(dataset.cases):  # not a case's fault: a store that cannot be written to
        raise first
    return outcome


def _print_outcome(outcome: StoreOutcome, dataset: RawDataset, request: PlanRequest, log_path: Path) -> None:
    kept = f", {len(outcome.kept)} kept from before" if outcome.kept else ""
    print(f"{len(outcome.made)} cases preprocessed{kept}: {outcome.folder}")
    if outcome.failed:
        print(f"{len(outcome.failed)} cases FAILED: {json.dumps(outcome.failed)[1:-1]}\n  tracebacks: {log_path}")
        return
    options = "" if request.plans_name == DEFAULT_PLANS_NAME else f" -p {request.plans_name}"
    print(f"next: fedsam_train_federated -d {dataset_id(dataset.name)}{options}")
