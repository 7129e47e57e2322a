"""The three commands of the mission, as written, in an empty folder, with the real weights."""

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.volume import read_image, read_labels
from tests.end_to_end.commands import run

pytestmark = pytest.mark.weights

SITES = ("site_a", "site_b", "site_c")
RAW = Path("fedsam_data/raw/Dataset001_Demo")
PREPROCESSED = Path("fedsam_data/preprocessed/Dataset001_Demo")
FOLD = Path("fedsam_data/results/Dataset001_Demo/default__plans__main/federated__fedavg-int4__seed0/fold_0")


@dataclass(frozen=True)
class Mission:
    """The folder in which the commands ran, and what each printed."""

    folder: Path
    planned: str
    trained: str
    predicted: str
    evaluated: str

    def json(self, path: Path | str) -> Any:
        return json.loads((self.folder / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def mission(tmp_path_factory: pytest.TempPathFactory) -> Mission:
    folder = tmp_path_factory.mktemp("mission")
    run(folder, "fedsam_make_demo_dataset --size tiny")
    planned = run(folder, "fedsam_plan_and_preprocess -d 1")
    shorten(folder / PREPROCESSED / "plans.json")
    trained = run(folder, "fedsam_train_federated")
    shutil.copytree(folder / RAW / "imagesTs", folder / "imgs")
    predicted = run(folder, "fedsam_predict -i imgs -o masks")
    return Mission(folder, planned, trained, predicted, run(folder, f"fedsam_evaluate {RAW} masks"))


def shorten(path: Path) -> None:
    """What a user may do by hand: fewer and smaller steps."""
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["training"] |= {"rounds": 2, "local_steps": 2, "effective_batch": 4}
    path.write_text(json.dumps(plans, indent=2), encoding="utf-8")


def test_planning_writes_what_the_formats_name(mission: Mission) -> None:
    folder = mission.folder / PREPROCESSED
    cases = {path.name.removesuffix("_0000.nii.gz") for path in (mission.folder / RAW / "imagesTr").iterdir()}
    assert {path.stem for path in (folder / "fingerprints").iterdir()} == set(SITES)
    for name in ("fingerprint.json", "plans.json", "splits_final.json", "integrity.json", "dataset.json"):
        assert (folder / name).is_file()
    (store,) = folder.glob("store_*")
    written = {path.name for path in store.iterdir()}
    assert {f"{case}{ending}" for case in cases for ending in (".b2nd", "_seg.b2nd", ".json")} <= written
    assert set(mission.json(PREPROCESSED / "plans.json")["why"])
    assert "next: fedsam_train_federated -d 1" in mission.planned


def test_training_writes_what_the_formats_name(mission: Mission) -> None:
    fold = mission.folder / FOLD
    files = "run.json progress.jsonl progress.png communication.json adapter.safetensors validation/summary.json"
    bundle = "bundle.json plans.json recipe.json manifest.json dataset.json coverage.json"
    assert not [name for name in (files + " " + bundle).split() if not (fold / name).is_file()]
    assert sorted(path.name for path in (fold / "checkpoints").iterdir()) == ["round_0001", "round_0002"]
    for site in SITES:
        assert (fold / "sites" / site / "logs" / "site.log").is_file()
        assert (fold / "sites" / site / "validation.json").is_file()
    assert list((fold / "logs").glob("train_*.log"))
    assert not [path for path in mission.folder.rglob("*") if path.name.startswith(".tmp")]


def test_the_run_is_recorded_as_done(mission: Mission) -> None:
    state = mission.json(FOLD / "run.json")
    assert (state["status"], state["protocol"], state["base_model"], state["sites"]) == ("done", "federated", "lite_medsam", list(SITES))
    assert (state["rounds"], state["local_steps"], state["fold"], state["seed"]) == (2, 2, "0", 0)
    assert state["weights_sha256"].startswith("79d8c9dc")
    assert {"python", "torch", "flwr", "fedsam-pipeline"} <= state["versions"].keys()
    lines = [json.loads(line) for line in (mission.folder / FOLD / "progress.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["event"], line["round"]) for line in lines] == [("round", 1), ("round", 2), ("final", 2)]
    assert lines[-1]["refused"] == state["final"]["refused"] == {}
    assert lines[-1]["dice"] == mission.json(FOLD / "validation" / "summary.json")["dice"] == state["final"]["dice"]
    assert "dataset Dataset001_Demo" in mission.trained and "Dice" in mission.trained


def test_bytes_are_counted_for_every_message(mission: Mission) -> None:
    manifest = mission.json(FOLD / "manifest.json")
    payload = sum(4 * int(np.prod(entry["shape"])) for entry in manifest["tensors"] if entry["travels"] == "both")
    rounds = mission.json(FOLD / "communication.json")["rounds"]
    assert [entry["message"] for entry in rounds] == ["train.round", "train.round", "evaluate.fold", "query.postprocessing"]
    assert all(way["bytes_message"] > 0 for site in rounds.pop()["sites"].values() for way in site.values())
    for entry in rounds:
        assert sorted(entry["sites"]) == list(SITES)
        for traffic in entry["sites"].values():
            up = payload if entry["message"] == "train.round" else 0
            assert (traffic["down"]["bytes_payload_before"], traffic["up"]["bytes_payload_before"]) == (payload, up)
            for way in traffic.values():
                assert way["bytes_message"] > way["bytes_payload_after"]
                assert way["bytes_payload_after"] < payload
    assert payload < 39_370_479 / 10  # an adapter, not a model


def header(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes())[:348]


def test_masks_lie_exactly_on_their_images(mission: Mission) -> None:
    images = sorted((mission.folder / "imgs").iterdir())
    assert len(images) == 3
    for image in images:
        mask = mission.folder / "masks" / image.name.replace("_0000", "")
        on_image, on_mask = read_image([image]), read_labels(mask)
        assert on_mask.geometry.size == on_image.geometry.size
        np.testing.assert_allclose(on_mask.geometry.corners(), on_image.geometry.corners(), atol=1e-3)
        assert set(np.unique(on_mask.array)) <= {0, 1, 2}
        assert header(mask)[252:328] == header(image)[252:328]  # qform and sform, codes and values
        assert header(mask)[76:108] == header(image)[76:108]  # pixdim
    assert "predicting with Dataset001_Demo" in mission.predicted
    assert sorted(path.name for path in (mission.folder / "masks").glob("*.nii.gz")) == [
        image.name.replace("_0000", "") for image in images
    ]


def test_dice_is_printed_with_its_rule_for_every_site(mission: Mission) -> None:
    summary = mission.json("masks/summary.json")
    assert sorted(summary["sites"]) == list(SITES)
    assert summary["rule"] in mission.evaluated
    assert "Dice" in mission.evaluated and all(site in mission.evaluated for site in SITES)


def test_the_trained_folder_alone_predicts_the_same(mission: Mission, tmp_path: Path) -> None:
    fold = mission.folder / FOLD
    shutil.copytree(fold, tmp_path / "model", ignore=shutil.ignore_patterns("checkpoints", "sites", "logs"))
    shutil.copytree(mission.folder / "imgs", tmp_path / "imgs")
    run(tmp_path, "fedsam_predict -i imgs -o masks -m model")
    assert not (tmp_path / "fedsam_data").exists()
    for image in (tmp_path / "imgs").iterdir():
        name = image.name.replace("_0000", "")
        np.testing.assert_array_equal(read_labels(tmp_path / "masks" / name).array, read_labels(mission.folder / "masks" / name).array)
