"""What a site does before round 1: measures its cases, preprocesses them for an agreed plan."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.splits import make_splits
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import write_json
from fedsam_pipeline.pipeline.fingerprints import release_site
from fedsam_pipeline.pipeline.plan_and_preprocess import dataset_json, fill_store, measure
from fedsam_pipeline.preprocessing.budget import default_processes
from fedsam_pipeline.preprocessing.workers import CaseWorkers
from fedsam_pipeline.specs.plans import Plans

FINGERPRINT, PREPARE = "fingerprint", "prepare"


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


def measure_site(asked: Mapping[str, Any]) -> None:
    """Measures all cases and writes what may leave to ``fingerprints/SITE.json``.

    Args:
        asked: ``raw``, ``preprocessed`` (folders of the dataset), ``site``, ``privacy_floor``.
    """
    dataset, folder = site_dataset(Path(asked["raw"]), asked["site"]), Path(asked["preprocessed"])
    with CaseWorkers(default_processes(dataset)) as workers:
        measured = measure(dataset, folder, workers, verify=True)
    release_site(dataset, measured[asked["site"]], asked["privacy_floor"], folder)


def prepare_site(asked: Mapping[str, Any]) -> None:
    """Writes plan, splits and ``dataset.json``, and preprocesses all cases.

    Args:
        asked: ``raw``, ``preprocessed``, ``site``, ``plans``.

    Raises:
        FedsamError: the plan is for other labels or channels, or a case cannot be preprocessed.
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
    plans.save(folder / f"{plans.plans_name}.json")
    write_json(folder / "dataset.json", dataset_json(dataset))
    splits = folder / "splits_final.json"
    if not splits.exists():
        write_json(splits, make_splits(dataset.sites, dataset.patients))
    with CaseWorkers(default_processes(dataset)) as workers:
        outcome = fill_store(dataset, plans, folder, workers)
    if outcome.failed:
        raise FedsamError(
            "cases could not be preprocessed", path=outcome.folder, found=", ".join(outcome.failed), fix="see the log above, and mend them"
        )


WORK: dict[str, Callable[[Mapping[str, Any]], None]] = {FINGERPRINT: measure_site, PREPARE: prepare_site}
"""by kind of job"""
