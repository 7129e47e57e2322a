"""The commands on datasets of fewer cases than folds: one to four cases, at one site or two.

The sites are Flower apps in this process (no Ray).
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_labels
from fedsam_pipeline.entrypoints import plan_and_preprocess, predict, train_federated

RAW = Path("fedsam_data/raw/Dataset001_Demo")
PREPROCESSED = Path("fedsam_data/preprocessed/Dataset001_Demo")
RUN = Path("fedsam_data/results/Dataset001_Demo/default__plans__main/federated__fedavg-int4__seed0")
pytestmark = pytest.mark.usefixtures("sites_in_process")


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def plan(sizes: Sequence[int]) -> dict[str, list[str]]:
    """Plans the first cases of the tiny cohort, so many a site. Returns site to cases."""
    cases = iter(make_demo_dataset(RAW, size="tiny").sites["site_a"])
    sites = {f"site_{index}": [next(cases) for _ in range(size)] for index, size in enumerate(sizes)}
    kept = {case for members in sites.values() for case in members}
    for path in [*(RAW / "imagesTr").iterdir(), *(RAW / "labelsTr").iterdir()]:
        if path.name.removesuffix(".nii.gz").removesuffix("_0000") not in kept:
            path.unlink()
    content = load(RAW / "dataset.json")
    tests = [case for members in content["test_sites"].values() for case in members]
    content |= {"sites": sites, "numTraining": len(kept), "test_sites": {"site_0": tests}}
    (RAW / "dataset.json").write_text(json.dumps(content), encoding="utf-8")
    assert plan_and_preprocess.main(["-d", "1", "-m", "tiny_random", "-np", "1", "--privacy_floor", "1"]) == 0
    plans = load(PREPROCESSED / "plans.json")
    plans["training"] |= {"effective_batch": plans["slab_depth"]}
    (PREPROCESSED / "plans.json").write_text(json.dumps(plans), encoding="utf-8")
    return sites


def train_once(fold: str) -> int:
    return train_federated.main(["--rounds", "1", "--local_steps", "1", "-f", fold])


@pytest.mark.parametrize("sizes", [(1,), (2,), (3,), (4,), (1, 1), (3, 1)], ids=str)
def test_few_cases_are_planned_trained_and_predicted(sizes: tuple[int, ...]) -> None:
    sites = plan(sizes)
    assert train_once("0") == 0
    validated = load(RUN / "fold_0" / "validation" / "summary.json")
    assert validated["sites"].keys() == {site for site, cases in sites.items() if len(cases) > 1}  # an only case trains
    assert all(list(score["classes"]) == ["organ", "nodule"] for score in validated["sites"].values())
    assert predict.main(["-i", str(RAW / "imagesTs"), "-o", "masks"]) == 0
    masks = sorted(Path("masks").glob("*.nii.gz"))
    assert len(masks) == 3 and all(read_labels(mask).array.size for mask in masks)


def test_a_fold_that_leaves_a_site_without_training_cases_is_refused_and_all_folds_at_once_work(capsys: pytest.CaptureFixture[str]) -> None:
    sites = plan((2, 1))
    splits = [{"train": sites["site_0"], "val": sites["site_1"]}, {"train": sites["site_1"], "val": sites["site_0"]}]
    (PREPROCESSED / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")
    capsys.readouterr()
    assert train_once("0") == 2
    error = capsys.readouterr().err
    assert "fold 0 leaves a site without training cases" in error and "site_1" in error and "-f all" in error
    assert not RUN.exists()
    assert train_once("all") == 0
    assert load(RUN / "fold_all" / "validation" / "summary.json")["dice"] is None
