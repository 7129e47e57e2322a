"""What a site does before round 1: measures its cases, preprocesses them for an agreed plan."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.splits import load_splits, make_splits
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.pipeline.fingerprints import release_site
from fedsam_pipeline.pipeline.plan_and_preprocess import dataset_json, fill_store, measure
from fedsam_pipeline.preprocessing.budget import default_processes
from fedsam_pipeline.preprocessing.workers import CaseWorkers
from fedsam_pipeline.specs.plans import Plans

log = logging.getLogger(__name__)
FINGERPRINT, PREPARE = "fingerprint", "prepare"
SITE_FOLDER = "federation"
"""in the preprocessed dataset: log, audit trail and jobs of the time before a run"""
RELEASED = "released.json"


def site_dataset(raw: Path, site: str) -> RawDataset:
    """The raw dataset of one site.

    Raises:
        FedsamError: it is not usable, or it holds another site's cases, or several sites'.
    """
    dataset = load_raw_dataset(raw)
    if set(dataset.sites) != {site}:
        raise FedsamError(
            "a raw dataset holds other sites' cases",
            path=raw,
            found=", ".join(dataset.sites),
            expected=f"cases of {site} alone",
            fix=f'put site = "{site}" into site.toml, and take sites out of dataset.json',
        )
    return dataset


def measure_site(asked: Mapping[str, Any]) -> str:
    """Measures all cases and tells what may leave: once, and again only after as many patients have changed as the privacy floor.

    Who could ask for two fingerprints that differ by one patient could subtract them (docs/privacy.md). What was told stands in
    ``federation/released.json``, and is told again until then.

    Args:
        asked: ``raw``, ``preprocessed`` (folders of the dataset), ``site``, ``privacy_floor``.

    Raises:
        FedsamError: the dataset is not usable, or was released with another floor.
    """
    dataset, folder = site_dataset(Path(asked["raw"]), asked["site"]), Path(asked["preprocessed"])
    floor = int(asked["privacy_floor"])
    patients = sorted({dataset.patients.get(case, f"case {case}") for case in dataset.sites[asked["site"]]})
    kept = folder / SITE_FOLDER / RELEASED
    if kept.exists():
        last = read_json(kept, fix="delete it, if as many patients have changed since as the privacy floor says")
        changed = len(set(patients) ^ set(last["patients"]))
        if last["privacy_floor"] != floor and changed < floor:
            raise FedsamError(
                "this site released its fingerprint with another privacy floor",
                path=kept,
                found=f"floor {last['privacy_floor']}, {changed} patients have changed since",
                expected=f"floor {floor} as now, or {floor} patients that have come or gone",
                fix="set the old floor again; or delete the file, if both releases together may be known",
            )
        if changed < floor:
            log.info("%d patients have changed since the last release, fewer than %d: the server is told the same again", changed, floor)
            return str(last["told"])
    with CaseWorkers(default_processes(dataset)) as workers:
        measured = measure(dataset, folder, workers, verify=True)
    told = release_site(dataset, measured[asked["site"]], floor, folder).read_text(encoding="utf-8")
    write_json(kept, {"patients": patients, "privacy_floor": floor, "told": told})
    return told


def prepare_site(asked: Mapping[str, Any]) -> str:
    """Writes plan, splits and ``dataset.json``, and preprocesses all cases; tells how many of them are validated in all folds.

    Args:
        asked: ``raw``, ``preprocessed``, ``site``, ``plans``, ``fold``.

    Raises:
        FedsamError: the plan is for other labels or channels, the splits for other cases or have no such fold, or a case cannot be
            preprocessed.
    """
    dataset, folder = site_dataset(Path(asked["raw"]), asked["site"]), Path(asked["preprocessed"])
    plans = Plans.from_dict(asked["plans"])
    own, planned = (dict(dataset.labels), list(dataset.channel_names)), (dict(plans.labels), [channel.name for channel in plans.channels])
    if own != planned:
        raise FedsamError(
            "the federation's plan does not fit this site's dataset",
            path=dataset.folder / "dataset.json",
            found=f"labels and channels {own}",
            expected=f"{planned}, as in the plan",
            fix="take the federation's dataset.json, and say in site.toml how this site's labels and channels become its",
        )
    path = folder / "splits_final.json"
    if not path.exists():
        write_json(path, make_splits(dataset.sites, dataset.patients))
    splits = load_splits(path, dataset.sites[asked["site"]], dataset.patients)
    if asked["fold"] != "all" and int(asked["fold"]) >= len(splits):
        raise FedsamError("this site has no such fold", path=path, found=f"{len(splits)} folds", expected=f"fold {asked['fold']}")
    plans.save(folder / f"{plans.plans_name}.json")
    write_json(folder / "dataset.json", dataset_json(dataset))
    with CaseWorkers(default_processes(dataset)) as workers:
        outcome = fill_store(dataset, plans, folder, workers)
    if outcome.failed:
        raise FedsamError(
            "cases could not be preprocessed", path=outcome.folder, found=", ".join(outcome.failed), fix="see the log above, and mend them"
        )
    return json.dumps({"validated": sum(len(split["val"]) for split in splits)})


WORK: dict[str, Callable[[Mapping[str, Any]], str]] = {FINGERPRINT: measure_site, PREPARE: prepare_site}
"""by kind of job; each returns what the server may be told"""
