"""``-c triplanar`` from the plan to masks on a machine that has only the bundle.

The sites are Flower apps in this process (no Ray).
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import read_image, read_labels
from fedsam_pipeline.entrypoints import export_model, import_model, plan_and_preprocess, predict, train_federated
from fedsam_pipeline.flower.site_worker import SiteSetup
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.probabilities import open_probabilities
from fedsam_pipeline.inference.view_predictors import view_predictors
from fedsam_pipeline.model.bundle import load_bundle
from fedsam_pipeline.model.trained_files import read_adapter, write_adapter
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from fedsam_pipeline.preprocessing.views import views

RAW = Path("fedsam_data/raw/Dataset001_Demo")
RESULTS = Path("fedsam_data/results/Dataset001_Demo")
RUN = RESULTS / "flap_sam__cubes__triplanar/federated__fedavg__seed0"
TRAIN = ["-d", "1", "-r", "flap_sam", "-c", "triplanar", "--rounds", "1", "--local_steps", "2", "-device", "cpu"]


@pytest.fixture(autouse=True)
def _exact(sites_in_process: list[SiteSetup], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsam_pipeline.pipeline.segmenter.autocast_dtype", lambda _device: None)  # to compare with the plain answer


def load(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def plan(name: str, *spacing: str) -> None:
    command = ["-d", "1", "-m", "tiny_random", "-np", "1", "--privacy_floor", "1"]
    assert plan_and_preprocess.main([*command, "-overwrite_target_spacing", *spacing, "-overwrite_plans_name", name]) == 0


def move(fold: Path) -> None:
    """Two steps from random weights find nothing: every trained tensor is moved, so that masks have something to differ in."""
    info, _, tensors = read_adapter(fold)
    generator = torch.Generator().manual_seed(int(fold.name[-1]))
    moved = {name: tensor + 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in sorted(tensors.items())}
    write_adapter(fold, moved, info)


def plain_probabilities(fold: Path, image: np.ndarray) -> np.ndarray:
    """(S, K, H, W) mean of the three views of one fold, every array whole in memory."""
    loaded = load_bundle(fold)
    total = 0
    for view, predictor in zip(views(loaded.plans, "triplanar"), view_predictors(loaded.model, loaded.plans, "triplanar"), strict=True):
        logits = np.concatenate([part.copy() for part in predictor.stream_case(image)])  # (n, K, h, w) along the view's axis
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        axes = [(0, 2, 3)[view.order.index(axis)] for axis in range(3)]
        total = total + (scores / scores.sum(axis=1, keepdims=True)).transpose(axes[0], 1, axes[1], axes[2]) / 3
    return np.asarray(total, np.float32)


def test_a_triplanar_model_trains_travels_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_demo_dataset(RAW, size="tiny")
    plan("cubes", "4", "4", "4.4")
    assert "main, triplanar" in capsys.readouterr().out
    for fold in ("0", "1"):
        assert train_federated.main([*TRAIN, "-p", "cubes", "-f", fold]) == 0
    run, info = load(RUN / "fold_0/run.json"), load(RUN / "fold_0/bundle.json")
    assert run["configuration"] == info["configuration"] == "triplanar"
    assert run["final"]["dice"] is not None and run["status"] == "done"
    assert train_federated.main([*TRAIN[:4], *TRAIN[6:], "-p", "cubes", "-f", "0"]) == 0  # main lies beside it
    assert load(RESULTS / "flap_sam__cubes__main/federated__fedavg__seed0/fold_0/bundle.json")["configuration"] == "main"

    for fold in ("0", "1"):
        move(RUN / f"fold_{fold}")
    images = sorted((RAW / "imagesTs").glob("*_0000.nii.gz"))[:1]
    shutil.copytree(RAW / "imagesTs", "imgs", ignore=lambda _, names: [name for name in names if name not in {i.name for i in images}])
    flags = ["-i", "imgs", "-device", "cpu", "--save_probabilities", "--disable_tta"]
    assert predict.main([*flags, "-m", str(RUN), "-o", "masks"]) == 0
    assert predict.main([*flags, "-m", str(RUN), "-o", "small", "--max_memory", "0.01"]) == 0
    plans = load_bundle(RUN / "fold_0").plans
    for path in images:
        name = path.name.removesuffix("_0000.nii.gz")
        image, properties = preprocess_image(read_image([path]), plans)
        mean = np.mean([plain_probabilities(RUN / f"fold_{fold}", image) for fold in (0, 1)], axis=0)
        expected = export_stream([mean], properties, plans)
        mask = read_labels(Path("masks") / f"{name}.nii.gz").array
        assert mask.shape == expected.shape
        assert (mask == expected).mean() > 0.995  # half precision of the sum, at ties
        assert len(np.unique(mask)) > 1, "nothing was found: the comparison says little"
        large, small = (open_probabilities(Path(folder) / f"{name}_probabilities.b2nd").array[:] for folder in ("masks", "small"))
        np.testing.assert_allclose(small, large, atol=4e-3)

    assert export_model.main(["-m", str(RUN), "-o", "model.zip"]) == 0
    shutil.rmtree("fedsam_data")  # another machine
    assert import_model.main(["model.zip", "-o", "elsewhere/under_any_name"]) == 0
    assert "sagittal (x), averaged" in Path("elsewhere/under_any_name/MODEL_CARD.md").read_text()
    assert predict.main([*flags, "-m", "elsewhere/under_any_name", "-o", "again"]) == 0
    for path in images:
        file = path.name.replace("_0000", "")
        assert np.array_equal(read_labels(Path("again") / file).array, read_labels(Path("masks") / file).array)
    assert export_model.main(["-m", "elsewhere/under_any_name", "-o", "once_more.zip"]) == 0
    assert Path("once_more.zip").read_bytes() == Path("model.zip").read_bytes()


def test_a_plan_of_long_voxels_refuses_it(capsys: pytest.CaptureFixture[str]) -> None:
    make_demo_dataset(RAW, size="tiny")
    plan("long", "6", "3", "3")
    assert "main, triplanar" not in capsys.readouterr().out
    assert train_federated.main([*TRAIN, "-p", "long"]) == 2
    message = capsys.readouterr().err
    for part in ("does not offer the configuration triplanar", "long.json", "2 times the finest, more than 1.5 times", "-c main"):
        assert part in message
    assert not RESULTS.exists()


def test_folds_of_two_configurations_are_not_one_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_demo_dataset(RAW, size="tiny")
    plan("cubes", "4", "4", "4")
    for fold in ("0", "1"):
        assert train_federated.main([*TRAIN, "-p", "cubes", "-f", fold]) == 0
    path = RUN / "fold_1/bundle.json"
    path.write_text(json.dumps(load(path) | {"configuration": "main"}))
    assert predict.main(["-i", str(RAW / "imagesTs"), "-o", "masks", "-m", str(RUN), "-device", "cpu"]) == 2
    assert "another configuration than fold_0" in capsys.readouterr().err
    assert export_model.main(["-m", str(RUN), "-o", "model.zip"]) == 2
    assert "different configurations" in capsys.readouterr().err


def test_a_run_of_a_version_without_configurations_goes_on() -> None:
    make_demo_dataset(RAW, size="tiny")
    plan("cubes", "4", "4", "4")
    command = [*TRAIN[:4], *TRAIN[6:], "-p", "cubes"]
    assert train_federated.main(command) == 0
    fold = RESULTS / "flap_sam__cubes__main/federated__fedavg__seed0/fold_0"
    for name in ("run.json", "bundle.json"):
        (fold / name).write_text(json.dumps({key: value for key, value in load(fold / name).items() if key != "configuration"}))
    assert train_federated.main([*command, "--c"]) == 0
    assert predict.main(["-i", str(RAW / "imagesTs"), "-o", "masks", "-m", str(fold), "-device", "cpu"]) == 0
