"""Two folds of a federation, from training to masks: postprocessing is chosen from both and applied."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.volume import read_image, read_labels
from fedsam_pipeline.pipeline.train_request import RunSetup, TrainRequest, run_setups
from fedsam_pipeline.postprocessing.apply import apply_rules
from fedsam_pipeline.specs.postprocessing import MaskRule, Postprocessing
from tests.end_to_end.commands import run

SITES = ("site_a", "site_b", "site_c")
RUN = Path("fedsam_data/results/Dataset001_Demo/default__plans__main/federated__fedavg-int4__seed0")
PREPROCESSED = Path("fedsam_data/preprocessed/Dataset001_Demo")
LABELS = {"background": 0, "organ": 1, "nodule": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both folds trained; every site may tell sums of any number of cases."""
    folder = tmp_path_factory.mktemp("two_folds")
    run(folder, "fedsam_make_demo_dataset --size tiny")
    run(folder, "fedsam_plan_and_preprocess -d 1 -m tiny_random --privacy_floor 1")
    return folder


def validated(folder: Path, fold: int) -> int:
    splits: list[dict[str, list[str]]] = json.loads((folder / PREPROCESSED / "splits_final.json").read_text(encoding="utf-8"))
    return len(splits[fold]["val"])


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_two_folds_with_mirroring_and_postprocessing(folder: Path) -> None:
    counted = 0
    for fold in (0, 1):
        run(folder, f"fedsam_train_federated -f {fold} --rounds 1 --local_steps 2 --val_every 0")
        counted += validated(folder, fold)
        chosen = Postprocessing.load(folder / RUN / "postprocessing.json")
        assert chosen.decisions and set(chosen.sites) <= set(SITES)
        assert {found.num_cases for each in chosen.decisions for found in each.classes.values()} == {counted}
        assert chosen.steps == tuple(each.rule for each in chosen.decisions if each.kept)
        assert "% of the usual object" in chosen.why["minimum_volume.nodule"]
        entries = read(folder / RUN / f"fold_{fold}" / "communication.json")["rounds"]
        assert [entry["message"] for entry in entries] == ["train.round", "evaluate.fold", *["query.postprocessing"] * 4]
        assert all(sorted(entry["sites"]) == list(SITES) for entry in entries)
        (log,) = (folder / RUN / f"fold_{fold}" / "logs").glob("train_*.log")
        assert f"postprocessing: {chosen.decisions[0].rule}: " in log.read_text(encoding="utf-8")

    steps = (MaskRule(kind="largest_component", label="organ"), MaskRule(kind="minimum_volume", label="nodule", min_volume_mm3=40.0))
    chosen.model_copy(update={"steps": steps}).save(folder / RUN / "postprocessing.json")  # whatever these few steps of training gave
    images = folder / "fedsam_data/raw/Dataset001_Demo/imagesTs"
    flags = "--mirror_axes 1 2 -device cpu"
    run(folder, f"fedsam_predict -i {images} -o masks {flags}")
    run(folder, f"fedsam_predict -i {images} -o plain {flags} --disable_postprocessing")
    for path in sorted(images.iterdir()):
        name = path.name.replace("_0000", "")
        plain, mask, image = read_labels(folder / "plain" / name), read_labels(folder / "masks" / name), read_image([path])
        assert mask.geometry.size == image.geometry.size
        np.testing.assert_allclose(mask.geometry.corners(), image.geometry.corners(), atol=1e-3)
        assert np.array_equal(mask.array, apply_rules(plain.array, plain.geometry.spacing, steps, LABELS))
    record = read(folder / "masks" / "prediction.json")
    assert len(record["adapters_sha256"]) == 2 and record["mirror_axes"] == [1, 2] and len(record["postprocessing"]) == 2


def test_which_runs_choose_and_what_their_sites_know(folder: Path) -> None:
    def setups(**flags: Any) -> list[RunSetup]:
        return run_setups(folder / PREPROCESSED, folder / "elsewhere", TrainRequest(**flags))

    (federated,) = setups(fold="1")
    assert federated.chooses_postprocessing
    assert sum(federated.validated.values()) == sum(validated(folder, fold) for fold in range(5))
    for site in federated.sites:
        assert site.privacy_floor == 1  # as planned
        assert sorted(site.other_folds) == ["0", "2", "3", "4"]
        assert site.other_folds["2"] == Path(str(site.state_folder).replace("fold_1", "fold_2"))
    for flags in ({"fold": "all"}, {"fold": "0-inner"}, {"protocol": "leave_one_site_out"}):
        assert not any(setup.chooses_postprocessing for setup in setups(**flags))
    assert all(setup.chooses_postprocessing for setup in setups(protocol="local"))
