"""Bundles: what goes out comes in again, predicts alike, names nobody."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_image
from fedsam_pipeline.entrypoints import export_model as export_command
from fedsam_pipeline.entrypoints import import_model as import_command
from fedsam_pipeline.entrypoints import predict as predict_command
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import sha256_file
from fedsam_pipeline.model.registry import BASE_MODELS
from fedsam_pipeline.model.trained_files import load_tensors, save_tensors
from fedsam_pipeline.pipeline.export_model import export_model
from fedsam_pipeline.pipeline.import_model import import_model
from fedsam_pipeline.specs.postprocessing import Postprocessing
from tests.conftest import make_tiny_plans
from tests.inference.coverage_for_tests import make_coverage
from tests.pipeline.model_bundles import RESULTS, Members, files_below, make_bundle, members_of, refused, rewritten
from tests.pipeline.trained_runs import RUN, SECRETS, write_fold

pytestmark = pytest.mark.usefixtures("users_folder")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made"))


def test_a_bundle_comes_back_as_it_went(made: Path) -> None:
    imported = import_model(made / "model.zip")
    assert imported.folder == RESULTS / RUN
    assert imported.needs is None
    assert files_below(imported.folder) == members_of(made / "model.zip")
    for fold in ("fold_0", "fold_1"):
        for name in ("adapter.safetensors", "bundle.json", "manifest.json", "plans.json", "recipe.json"):
            assert (imported.folder / fold / name).read_bytes() == (made / RUN / fold / name).read_bytes()
    assert not list(Path().rglob(".*"))


def test_an_imported_model_predicts_as_the_trained_one_without_anything_else(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("imgs").mkdir()
    array = np.random.default_rng(0).normal(100, 20, (5, 24, 20)).astype(np.float32)
    write_image(Path("imgs/x_0000.nii.gz"), array, Geometry((5, 24, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    assert predict_command.main(["-i", "imgs", "-o", "trained", "-m", str(made / RUN), "-device", "cpu"]) == 0
    assert import_command.main([str(made / "model.zip")]) == 0
    out = capsys.readouterr().out
    assert "fold 0, 1, made with fedsam-pipeline" in out and f"fedsam_predict -i IMAGES -o MASKS -m {RESULTS / RUN}" in out
    assert predict_command.main(["-i", "imgs", "-o", "imported", "-device", "cpu"]) == 0
    expected, found = (read_labels(Path(name) / "x.nii.gz").array for name in ("trained", "imported"))
    assert np.array_equal(found, expected) and len(np.unique(found)) > 1


def test_equal_models_give_equal_bytes_and_a_bundle_can_be_handed_on(made: Path) -> None:
    fold = shutil.copytree(made / RUN, Path("copy") / RUN) / "fold_0" / "plans.json"
    fold.write_text(json.dumps(json.loads(fold.read_text()), indent=7))  # another layout of the same document
    export_model(Path("again.zip"), model=Path("copy") / RUN, licence="CC-BY-4.0")
    imported = import_model(made / "model.zip", target=Path("anywhere"))
    export_model(Path("handed_on.zip"), model=imported.folder, licence="CC-BY-4.0")
    assert sha256_file(Path("again.zip")) == sha256_file(Path("handed_on.zip")) == sha256_file(made / "model.zip")


def test_no_case_no_patient_and_no_path_is_in_a_bundle(made: Path) -> None:
    content = (made / "model.zip").read_bytes().decode("latin-1")
    assert [word for word in (*SECRETS, str(made), "run.json", "run_id") if word in content] == []
    dataset = json.loads(members_of(made / "model.zip")["fold_0/dataset.json"])  # of the one in the fold, labels and channels alone
    assert dataset == {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}


def test_the_card_says_what_people_have_to_know(made: Path) -> None:
    card = members_of(made / "model.zip")["MODEL_CARD.md"].decode()
    for words in (
        "Not a medical device",
        "0 background, 1 organ, 2 lesion",
        "MRI (z-scored image by image)",
        "| 0 | federated, fedavg | site_a, site_b | 17 | 2 x 2 | 0 | 0.0 up, 0.0 down |",
        "| fold | cases | organ | lesion | mean Dice |",
        "| 1 | 13 | 0.7000 | 0.5000 | 0.6000 |",
        "| 0 | site_a | 6 | 0.7000 |",
        "drawn at random",
        "Trained weights in this bundle: CC-BY-4.0.",
        "fedsam_import_model BUNDLE.zip",
    ):
        assert words in card, words
    assert "fedsam_download_weights" not in card


def test_scores_of_few_cases_stay(tmp_path: Path) -> None:
    write_fold(tmp_path / RUN / "fold_0", val_cases=4)
    members = members_of(export_model(Path("few.zip"), model=tmp_path / RUN))
    record = json.loads(members["fold_0/training.json"])
    assert record["validation"]["num_cases"] == 11 and record["validation"]["sites"] is None
    card = members["MODEL_CARD.md"].decode()
    assert "Sites are not told apart" in card and "| site_a |" not in card
    assert "have not stated a licence" in card


def test_the_default_name_and_folder(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    assert export_command.main(["-f", "1"]) == 0
    path = Path("Dataset001_Demo__flap_sam__plans__main__federated__fedavg__seed0.zip")
    assert f"{path} (" in capsys.readouterr().out
    assert json.loads(members_of(path)["index.json"])["folds"] == ["1"]
    assert export_command.main(["-f", "1"]) == 2
    assert "the bundle exists already" in capsys.readouterr().err
    assert export_command.main(["-f", "0", "--overwrite"]) == 0
    assert json.loads(members_of(path)["index.json"])["folds"] == ["0"]


def test_what_cannot_be_exported(made: Path) -> None:
    with pytest.raises(FedsamError, match=r"there is no trained dataset[\s\S]*fedsam_train_federated"):
        export_model()
    with pytest.raises(FedsamError, match=r"a bundle is a zip"):
        export_model(Path("model.tar"), model=made / RUN)
    shutil.copytree(made / RUN, "renamed")
    with pytest.raises(FedsamError, match=r"not named as a run"):
        export_model(model=Path("renamed"))
    write_fold(RESULTS / RUN / "fold_0")
    write_fold(RESULTS / RUN / "fold_1", plans=make_tiny_plans(window_overlap=0.25))
    with pytest.raises(FedsamError, match=r"different plans"):
        export_model()
    write_fold(RESULTS / RUN / "fold_1", recipe="decoder")
    with pytest.raises(FedsamError, match=r"different recipes[\s\S]*leave fold 1 out"):
        export_model()
    (RESULTS / RUN / "fold_0" / "run.json").write_text("{}")
    with pytest.raises(FedsamError, match=r"protocol: missing"):
        export_model(folds=["0"])
    (RESULTS / RUN / "fold_0" / "run.json").write_text('{"final": {"all_sites": 3}}')
    with pytest.raises(FedsamError, match=r"records of a training cannot be read"):
        export_model(folds=["0"])
    assert not list(Path().glob("*.zip"))


def test_a_fold_without_records_is_exported_and_says_so(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    for name in ("run.json", "progress.jsonl", "communication.json"):
        (RESULTS / RUN / "fold_0" / name).unlink()
    members = members_of(export_model(Path("bare.zip"), folds=["0"]))
    assert "fold_0/training.json" not in members
    assert "No record of the training" in members["MODEL_CARD.md"].decode()
    shutil.rmtree(RESULTS)
    assert import_model(Path("bare.zip")).index.folds == ("0",)


def test_coverage_travels_with_the_model_and_must_be_its_plans(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    make_coverage(channels=({"name": "MRI", "spans": ((1.0, 2.0),)},)).save(RESULTS / RUN / "fold_0" / "coverage.json")
    members = members_of(export_model(Path("covered.zip")))
    assert "fold_0/coverage.json" in members and "fold_1/coverage.json" not in members
    shutil.rmtree(RESULTS)
    imported = import_model(Path("covered.zip"))
    assert (imported.folder / "fold_0" / "coverage.json").read_bytes() == members["fold_0/coverage.json"]
    make_coverage().save(imported.folder / "fold_0" / "coverage.json")  # of another channel
    export_model(Path("wrong.zip"), model=imported.folder)
    shutil.rmtree(RESULTS)
    refused(Path("wrong.zip"), r"a model's coverage does not belong to its plan[\s\S]*channels MR\n")


def test_postprocessing_that_is_none_is_not_exported(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    (RESULTS / RUN / "postprocessing.json").write_text('{"rules": []}')
    with pytest.raises(FedsamError, match="not a valid Postprocessing document"):
        export_model(Path("pp.zip"))
    assert not Path("pp.zip").exists()


def test_postprocessing_of_another_plan_is_not_imported(made: Path) -> None:
    def change(members: Members, index: dict[str, Any]) -> None:
        document = Postprocessing(dataset_name="Dataset001_Demo", plan_sha256="0" * 64, steps=())
        members["postprocessing.json"] = json.dumps(document.to_dict()).encode()
        index["members"].append({"name": "postprocessing.json", "num_bytes": 0, "file_sha256": "0" * 64})

    refused(rewritten(made, change), "postprocessing was chosen for another plan")


def test_a_broken_adapter_is_not_exported(made: Path) -> None:
    shutil.copytree(made / RUN, RESULTS / RUN)
    adapter = RESULTS / RUN / "fold_0" / "adapter.safetensors"
    tensors = load_tensors(adapter)
    tensors[min(tensors)][0] = torch.nan
    save_tensors(adapter, tensors)
    with pytest.raises(FedsamError, match="fails its hash check"):
        export_model(Path("x.zip"))
    info = json.loads((RESULTS / RUN / "fold_0" / "bundle.json").read_text())
    (RESULTS / RUN / "fold_0" / "bundle.json").write_text(json.dumps(info | {"adapter_sha256": sha256_file(adapter)}))
    with pytest.raises(FedsamError, match=f"{min(tensors)}: NaN or infinite"):
        export_model(Path("x.zip"))


def test_every_licence_of_the_registry_can_be_handed_on() -> None:
    from fedsam_pipeline.model.bundle_zip import licence_text

    for spec in BASE_MODELS.values():
        if spec.weights is not None:
            assert len(licence_text(spec.weights.licence)) > 1000
    assert licence_text("Apache-2.0") == (Path(__file__).parents[2] / "LICENSE").read_bytes()
    with pytest.raises(FedsamError, match="text of a licence"):
        licence_text("GPL-9.0")
