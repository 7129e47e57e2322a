"""``fedsam_predict`` on real files, with a model whose answer is known: a threshold on the normalized image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_image
from fedsam_pipeline.entrypoints.predict import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.bundle import LoadedModel
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.pipeline import predict as predict_module
from fedsam_pipeline.pipeline.predict import common_plans, predict
from fedsam_pipeline.specs.plans import Plans
from tests.dataset.series_for_tests import write_series
from tests.inference.plans_for_tests import make_plans

FLIPPED = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)  # an orientation that is not canonical
GEOMETRY = Geometry((6, 10, 9), (1.0, 1.0, 1.0), (5.0, -3.0, 2.0), FLIPPED)


class ThresholdModel(nn.Module):
    """Class 1 where the middle input is above zero, else background; class 2 never."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The images themselves."""
        return images

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """Logits (N, 3, h, w)."""
        middle = embeddings[:, 1]
        return torch.stack([-middle, middle, torch.full_like(middle, -50.0)], dim=1)


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(folder: Path, device: torch.device | str) -> LoadedModel:
        model: nn.Module = ThresholdModel().eval().to(device)
        return LoadedModel(model, Plans.load(folder / "plans.json"))  # type: ignore[arg-type]

    monkeypatch.setattr(predict_module, "load_bundle", load)
    monkeypatch.setattr(predict_module, "autocast_dtype", lambda _device: None)
    monkeypatch.chdir(tmp_path)
    for name in ("fedsam_raw", "fedsam_preprocessed", "fedsam_results"):
        monkeypatch.delenv(name, raising=False)


def _plans(**changes: object) -> Plans:
    return make_plans(target_spacing=(1.0, 1.0, 1.0), **changes)


def _train(plans: Plans, *folds: int, dataset: str = "Dataset001_Demo", protocol: str = "federated") -> Path:
    run = Path("fedsam_data") / "results" / dataset / "flap_sam__plans__main" / f"{protocol}__fedavg__seed0"
    for fold in folds:
        plans.save(run / f"fold_{fold}" / "plans.json")
        (run / f"fold_{fold}" / "bundle.json").write_text("{}")
    return run


def _image(path: Path, geometry: Geometry = GEOMETRY, seed: int = 0) -> np.ndarray:
    """Writes a noisy image with a bright block; returns the block."""
    array = np.random.default_rng(seed).normal(100, 1, geometry.size).astype(np.float32)
    block = np.zeros(geometry.size, bool)
    block[2:4, 3:8, 2:6] = True
    array[block] += 100
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, array, geometry)
    return block


def test_the_mission_command_needs_no_flags(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_plans(), 0, 1)
    blocks = {case: _image(Path("imgs") / f"{case}_0000.nii.gz", seed=seed) for seed, case in enumerate(["a", "b"])}
    assert main(["-i", "imgs", "-o", "masks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "predicting with Dataset001_Demo: flap_sam__plans__main/federated__fedavg__seed0"
    assert "fedsam_results not set" in lines[1]
    assert lines[-1] == "2 mask(s) written to masks"
    for case, block in blocks.items():
        mask = read_labels(Path("masks") / f"{case}.nii.gz")
        assert np.array_equal(mask.array, block)
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a.nii.gz", "b.nii.gz", "logs"]


def test_masks_lie_exactly_where_their_images_lie() -> None:
    run = _train(_plans(), 0)
    geometry = Geometry((7, 12, 11), (1.3, 0.9, 1.1), (5.125, -3.7, 2.0), FLIPPED)
    for ending in (".nii.gz", ".nrrd", ".mha"):
        _image(Path("imgs") / f"x{ending}", geometry)
        assert predict(Path("imgs") / f"x{ending}", Path("masks"), model=run, device="cpu") == 0
        image: Any = sitk.ReadImage(str(Path("imgs") / f"x{ending}"))
        mask: Any = sitk.ReadImage(str(Path("masks") / f"x{ending}"))
        assert mask.GetSize() == image.GetSize()
        assert mask.GetPixelID() == sitk.sitkUInt8
        for corner in np.ndindex(2, 2, 2):
            index = [int(c * (n - 1)) for c, n in zip(corner, image.GetSize(), strict=True)]
            difference = np.subtract(image.TransformIndexToPhysicalPoint(index), mask.TransformIndexToPhysicalPoint(index))
            assert np.abs(difference).max() < 1e-3


def test_a_dicom_series_becomes_a_nifti_mask_in_its_place() -> None:
    run = _train(_plans(), 0)
    turn = np.deg2rad(10.0)
    oblique = (np.cos(turn), -np.sin(turn), 0.0, np.sin(turn), np.cos(turn), 0.0, 0.0, 0.0, 1.0)
    grid = Geometry((6, 10, 9), (1.0, 1.0, 1.0), (5.0, -3.0, 2.0), oblique)
    array = np.random.default_rng(0).integers(90, 110, grid.size).astype(np.float32)
    block = np.zeros(grid.size, bool)
    block[2:4, 3:8, 2:6] = True
    array[block] += 1000
    write_series(Path("scans") / "one", array, grid)
    write_series(Path("scans") / "two", array[::-1], grid)
    assert predict(Path("scans"), Path("masks"), model=run, device="cpu") == 0
    for name, expected in (("one", block), ("two", block[::-1])):
        mask = read_labels(Path("masks") / f"{name}.nii.gz")
        assert np.array_equal(mask.array, expected)
        assert mask.geometry.same_grid(grid, 1e-3)
    assert predict(Path("scans") / "one", Path("mask.nii.gz"), model=run, device="cpu") == 0
    assert np.array_equal(read_labels(Path("mask.nii.gz")).array, block)


def test_a_dicom_series_with_a_gap_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    run = _train(_plans(), 0)
    (write_series(Path("scan"), np.zeros((6, 5, 6), np.float32)) / "slice003.dcm").unlink()
    assert main(["-i", "scan", "-o", "masks", "-m", str(run)]) == 2
    assert "a series lacks slices" in capsys.readouterr().err


def test_one_image_becomes_one_mask_file() -> None:
    run = _train(_plans(), 0)
    block = _image(Path("scan.nii.gz"))
    assert predict(Path("scan.nii.gz"), Path("here") / "mask.nii.gz", model=run / "fold_0", device="cpu", test_time_augmentation=False) == 0
    assert np.array_equal(read_labels(Path("here") / "mask.nii.gz").array, block)


def test_a_failing_case_is_named_and_the_others_finish(capsys: pytest.CaptureFixture[str]) -> None:
    run = _train(_plans(), 0)
    _image(Path("imgs") / "good_0000.nii.gz")
    (Path("imgs") / "bad_0000.nii.gz").write_bytes(b"this is no image")
    assert main(["-i", "imgs", "-o", "masks", "-m", str(run)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 of 2 cases failed, the others are written to masks"
    assert lines[1].startswith("  bad: an image file cannot be read")
    assert sorted(path.name for path in Path("masks").iterdir()) == ["good.nii.gz", "logs"]
    log = next((Path("masks") / "logs").iterdir()).read_text()
    assert "bad FAILED" in log


def test_an_only_case_that_fails_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    run = _train(_plans(), 0)
    Path("bad.nii.gz").write_bytes(b"this is no image")
    assert main(["-i", "bad.nii.gz", "-o", "masks", "-m", str(run)]) == 2
    assert "an image file cannot be read" in capsys.readouterr().err


def test_bad_input_stops_before_anything_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    run = _train(_plans(), 0)
    assert main(["-i", "nowhere", "-o", "masks", "-m", str(run)]) == 2
    assert "the input is missing" in capsys.readouterr().err
    _image(Path("imgs") / "x_0000.nii.gz")
    _image(Path("imgs") / "x_0001.nii.gz")
    assert main(["-i", "imgs", "-o", "masks", "-m", str(run)]) == 2
    assert "wrong number of channels: x" in capsys.readouterr().err
    assert not Path("masks").exists()


def test_an_output_folder_that_cannot_be_written_is_an_error_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    run = _train(_plans(), 0)
    _image(Path("imgs") / "x_0000.nii.gz")
    Path("file").write_text("in the way")
    assert main(["-i", "imgs", "-o", "file/masks", "-m", str(run)]) == 2
    assert "cannot write a log file" in capsys.readouterr().err


def test_without_a_trained_model_the_command_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    _image(Path("imgs") / "x_0000.nii.gz")
    assert main(["-i", "imgs", "-o", "masks"]) == 2
    error = capsys.readouterr().err
    assert "there is no trained dataset" in error
    assert "fedsam_train_federated" in error


def test_with_several_trained_datasets_the_user_must_choose(capsys: pytest.CaptureFixture[str]) -> None:
    for dataset in ("Dataset001_Demo", "Dataset002_Other"):
        _train(_plans(), 0, dataset=dataset)
    _image(Path("imgs") / "x_0000.nii.gz")
    assert main(["-i", "imgs", "-o", "masks"]) == 2
    assert "Dataset001_Demo, Dataset002_Other" in capsys.readouterr().err
    assert main(["-i", "imgs", "-o", "masks", "-d", "2", "-f", "0"]) == 0
    assert capsys.readouterr().out.startswith("predicting with Dataset002_Other")


def test_folds_of_different_plans_are_not_averaged() -> None:
    run = _train(_plans(), 0)
    _train(_plans(window_overlap=0.25), 1)
    with pytest.raises(FedsamError, match="the folds were trained with different plans") as caught:
        common_plans([run / "fold_0", run / "fold_1"])
    assert "fold_1" in str(caught.value)
    (run / "fold_1" / "plans.json").unlink()
    with pytest.raises(FedsamError, match="a file is missing"):
        common_plans([run / "fold_0", run / "fold_1"])
