"""The commands on masks that are not plain: a site that annotated one class only, ignored voxels, regions.

The sites are Flower apps in this process (no Ray).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_labels, write_labels
from fedsam_pipeline.entrypoints import evaluate, plan_and_preprocess, predict, train_federated
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.preprocessing.store import CaseStore

RAW = Path("fedsam_data/raw/Dataset001_Demo")
PREPROCESSED = Path("fedsam_data/preprocessed/Dataset001_Demo")
FOLD = Path("fedsam_data/results/Dataset001_Demo/default__plans__main/federated__fedavg-int4__seed0/fold_0")


@pytest.fixture
def trained(sites_in_process: list[SiteSetup]) -> list[SiteSetup]:
    """The tiny cohort, with regions, ignored voxels and a site without nodules, planned, trained for a round, predicted and scored."""
    relabel()
    assert plan_and_preprocess.main(["-d", "1", "-m", "tiny_random", "-np", "1"]) == 0
    shorten(PREPROCESSED / "plans.json")
    assert train_federated.main(["--rounds", "2", "--local_steps", "1", "--val_every", "1"]) == 0
    assert predict.main(["-i", str(RAW / "imagesTs"), "-o", "masks"]) == 0
    assert evaluate.main([str(RAW), "masks"]) == 0
    return sites_in_process


def relabel() -> None:
    """``site_b`` knows no nodules; the first slice of every mask is ignored; organ and nodule together are a region."""
    dataset = make_demo_dataset(RAW, size="tiny")
    content = json.loads((RAW / "dataset.json").read_text(encoding="utf-8"))
    content |= {
        "labels": {"background": 0, "organ_with_nodules": [1, 2], "nodule": 2, "ignore": 3},
        "regions_class_order": [1, 2],
        "site_labels": {"site_b": ["organ_with_nodules_1"]},
    }
    (RAW / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    val = [cases[-1] for cases in dataset.sites.values()]  # of every site
    PREPROCESSED.mkdir(parents=True)
    splits = [{"train": sorted(set(dataset.cases) - set(val)), "val": sorted(val)}]
    (PREPROCESSED / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    of_site_b = {*dataset.sites["site_b"], *dataset.test_sites["site_b"]}
    for path in sorted([*(RAW / "labelsTr").iterdir(), *(RAW / "labelsTs").iterdir()]):
        volume = read_labels(path)
        labels = np.where(volume.array == 2, 0, volume.array) if path.name.removesuffix(".nii.gz") in of_site_b else volume.array.copy()
        labels[0] = 3
        write_labels(path, labels, volume.geometry)


def shorten(path: Path) -> None:
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["training"] |= {"effective_batch": 4}
    path.write_text(json.dumps(plans), encoding="utf-8")


def load(path: Path | str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_partial_labels_ignored_voxels_and_regions_from_raw_masks_to_scores(trained: list[SiteSetup]) -> None:
    assert load(PREPROCESSED / "plans.json")["labels"] == {"background": 0, "organ_with_nodules_1": 1, "nodule": 2}
    assert {setup.site: setup.annotated for setup in trained} == {"site_a": {}, "site_b": {"site_b": (1,)}, "site_c": {}}

    lines = [json.loads(line) for line in (FOLD / "progress.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(np.isfinite(site["loss"]) for line in lines if line["event"] == "round" for site in line["sites"].values())
    site_b = load(FOLD / "validation" / "summary.json")["sites"]["site_b"]
    regions = {"organ_with_nodules", "nodule"}
    validation = load(FOLD / "validation" / "summary.json")
    assert all(score["classes"].keys() == regions for score in (*validation["sites"].values(), validation["all_sites"]))
    site_b = validation["sites"]["site_b"]  # annotated a part of the region only
    assert site_b["dice"] is None and site_b["excluded"] == {"organ_with_nodules": 1, "nodule": 1}
    assert lines[1]["validation"]["site_b"]["excluded"] == site_b["excluded"]  # in the rounds, too
    assert lines[1]["validation"]["site_a"]["classes"].keys() == regions
    region, nodule = load(FOLD / "sites" / "site_a" / "validation.json")["cases"][0]["tp_fp_fn"]
    store = CaseStore(next(PREPROCESSED.glob("store_*")))
    truth = store.open(load(PREPROCESSED / "splits_final.json")[0]["val"][0]).labels[:]
    assert region[0] + region[2] == (truth > 0).sum() and nodule[0] + nodule[2] == (truth == 2).sum()

    values = {value for mask in Path("masks").glob("*.nii.gz") for value in np.unique(read_labels(mask).array).tolist()}
    assert values <= {0, 1, 2}
    summary = load("masks/summary.json")
    assert summary["labels"] == {"organ_with_nodules": "(1, 2)", "nodule": 2}
    assert summary["sites"]["site_b"]["excluded"] == {"organ_with_nodules": 1, "nodule": 1}
    assert summary["sites"]["site_b"]["dice"] is None
    assert summary["sites"]["site_a"]["dice"] is not None
    assert load(FOLD / "dataset.json")["labels"] == load(RAW / "dataset.json")["labels"]


def test_a_run_does_not_go_on_with_other_partial_labels(trained: list[SiteSetup], capsys: pytest.CaptureFixture[str]) -> None:
    path = PREPROCESSED / "dataset.json"
    path.write_text(json.dumps(load(path) | {"site_labels": {}}), encoding="utf-8")
    assert train_federated.main(["--rounds", "2", "--local_steps", "1", "--val_every", "1", "--c"]) == 2
    assert "cases_sha256" in capsys.readouterr().err
