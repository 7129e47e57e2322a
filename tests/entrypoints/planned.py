"""A planned and preprocessed dataset, written through the library, that a training command can start from."""

from pathlib import Path

from fedsam_pipeline.dataset.splits import make_splits
from fedsam_pipeline.files import write_json
from fedsam_pipeline.preprocessing.store import store_folder
from tests.conftest import make_tiny_plans
from tests.planning.fingerprints import stated
from tests.training.stores import write_store

SITES = {"site_a": ["a_0", "a_1", "a_2"], "site_b": ["b_0", "b_1"]}


def write_planned(preprocessed: Path, name: str = "Dataset001_Demo", **changes: object) -> Path:
    """Plans for the random tiny model, splits, and the store of five cases at two sites."""
    folder = preprocessed / name
    plans = make_tiny_plans(dataset_name=name, **changes)
    plans.save(folder / "plans.json")
    stated().save(folder / "fingerprint.json")
    write_json(folder / "dataset.json", {"labels": plans.labels, "sites": SITES})
    write_json(folder / "splits_final.json", make_splits(SITES, {}))
    write_store(store_folder(folder, plans), [case for cases in SITES.values() for case in cases])
    return folder
