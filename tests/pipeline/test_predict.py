"""``fedsam_predict`` on real files, with a model whose answer is known: a threshold on the normalized image."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from torch import nn

from fedsam_pipeline.dataset.volume import Geometry, read_image, read_labels, write_image, write_labels
from fedsam_pipeline.entrypoints.predict import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.export import export_stream
from fedsam_pipeline.inference.probabilities import open_probabilities
from fedsam_pipeline.inference.trained import common_plans
from fedsam_pipeline.model.prompts import Prompts
from fedsam_pipeline.model.trained_files import BundleInfo
from fedsam_pipeline.pipeline import mask_files as mask_files_module
from fedsam_pipeline.pipeline import predict_cases as predict_cases_module
from fedsam_pipeline.pipeline import segmenter as segmenter_module
from fedsam_pipeline.pipeline.predict import predict
from fedsam_pipeline.specs.plans import Plans
from tests.dataset.series_for_tests import write_series
from tests.inference.plans_for_tests import make_plans

FLIPPED = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)  # an orientation that is not canonical
GEOMETRY = Geometry((6, 10, 9), (1.0, 1.0, 1.0), (5.0, -3.0, 2.0), FLIPPED)

WRITTEN = ["dataset.json", "logs", "prediction.json", "qc", "qc.csv", "qc.html", "qc.json"]
"""beside the masks"""


class ThresholdModel(nn.Module):
    """Class 1 where the middle input is above zero, else background; class 2 never."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """The images themselves."""
        return images

    def decode(self, embeddings: torch.Tensor, prompts: Prompts | None = None) -> torch.Tensor:
        """Logits (N, 3, h, w)."""
        middle = embeddings[:, 1]
        return torch.stack([-middle, middle, torch.full_like(middle, -50.0)], dim=1)


class ThresholdFolds:
    """In place of ``FoldModels``: all folds compute the same."""

    def __init__(self, folders: Sequence[Path], device: torch.device) -> None:
        self.model = ThresholdModel().eval().to(device)
        self.configuration = BundleInfo.load(folders[0] / "bundle.json").configuration
        self._number = len(folders)

    def __len__(self) -> int:
        return self._number

    def use(self, fold: int) -> None:
        assert 0 <= fold < self._number


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch, users_folder: Path) -> None:
    monkeypatch.setattr(segmenter_module, "FoldModels", ThresholdFolds)
    monkeypatch.setattr(segmenter_module, "autocast_dtype", lambda _device: None)


def _plans(**changes: object) -> Plans:
    return make_plans(target_spacing=(1.0, 1.0, 1.0), **changes)


def _train(plans: Plans, *folds: int, dataset: str = "Dataset001_Demo", protocol: str = "federated") -> Path:
    run = Path("fedsam_data") / "results" / dataset / "flap_sam__plans__main" / f"{protocol}__fedavg__seed0"
    for fold in folds:
        plans.save(run / f"fold_{fold}" / "plans.json")
        info = {"base_model": "fake", "base_weights_sha256": "random", "lora_rank": 0, "rounds_done": 1, "adapter_sha256": f"{fold}" * 64}
        BundleInfo.from_dict(info).save(run / f"fold_{fold}" / "bundle.json")
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
    assert sorted(path.name for path in Path("masks").iterdir()) == ["a.nii.gz", "b.nii.gz", *WRITTEN]


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
    assert sorted(path.name for path in Path("masks").iterdir()) == sorted(["good.nii.gz", *WRITTEN])
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


def _images(*cases: str) -> dict[str, np.ndarray]:
    return {case: _image(Path("imgs") / f"{case}_0000.nii.gz", seed=seed) for seed, case in enumerate(cases)}


def _masks(folder: str = "masks") -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in Path(folder).glob("*.nii.gz"))


def test_parts_share_the_cases(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(_train(_plans(), 0))
    _images("a", "b", "c")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-num_parts", "2", "-part_id", "1"]) == 0
    assert _masks() == ["b"]
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-num_parts", "2"]) == 0
    assert _masks() == ["a", "b", "c"]
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-num_parts", "7", "-part_id", "6"]) == 0
    assert "nothing to predict" in capsys.readouterr().out
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-num_parts", "2", "-part_id", "2"]) == 2
    assert "there is no such part" in capsys.readouterr().err


def test_an_interrupted_prediction_is_continued(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(_train(_plans(), 0, 1))
    blocks = _images("a", "b", "c")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0"]) == 0
    Path("masks/b.nii.gz").unlink()
    before = Path("masks/a.nii.gz").stat().st_mtime_ns
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0", "--continue_prediction"]) == 0
    assert "2 case(s) were done before, 1 to do" in capsys.readouterr().out
    assert np.array_equal(read_labels(Path("masks/b.nii.gz")).array, blocks["b"])
    assert Path("masks/a.nii.gz").stat().st_mtime_ns == before
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0", "--continue_prediction"]) == 0
    assert "nothing to predict" in capsys.readouterr().out
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0", "--continue_prediction", "--save_probabilities"]) == 0
    assert "0 case(s) were done before, 3 to do" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [["-f", "0", "1"], ["-step_size", "1"], ["--disable_tta"], ["--mirror_axes", "0"]])
def test_masks_made_in_another_way_are_not_continued(changed: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = str(_train(_plans(), 0, 1))
    _images("a")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0"]) == 0
    flags = changed if "-f" in changed else ["-f", "0", *changed]
    assert main(["-i", "imgs", "-o", "masks", "-m", run, *flags, "--continue_prediction"]) == 2
    assert "predicted in another way" in capsys.readouterr().err
    Path("masks/prediction.json").unlink()
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0", "--continue_prediction"]) == 2
    assert "nothing says how" in capsys.readouterr().err


def test_masks_of_another_model_never_pass_for_this_ones(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = str(_train(_plans(), 0, 1))
    blocks = _images("a", "b")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "1", "--save_probabilities"]) == 0
    Path("imgs/b_0000.nii.gz").rename("elsewhere")
    Path("imgs/b_0000.nii.gz").write_bytes(b"broken")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0"]) == 1
    assert sorted(path.name for path in Path("masks").glob("?*.nii.gz")) == ["a.nii.gz"]
    assert not list(Path("masks").glob("*probabilities*"))
    Path("elsewhere").replace("imgs/b_0000.nii.gz")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "-f", "0", "--continue_prediction"]) == 0
    assert "1 case(s) were done before, 1 to do" in capsys.readouterr().out
    assert np.array_equal(read_labels(Path("masks/b.nii.gz")).array, blocks["b"])


def test_a_single_mask_is_not_continued(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(_train(_plans(), 0))
    _images("a")
    assert main(["-i", "imgs/a_0000.nii.gz", "-o", "mask.nii.gz", "-m", run, "--continue_prediction"]) == 2
    assert "nothing says how a single mask was predicted" in capsys.readouterr().err


def test_probabilities_lie_beside_the_mask_on_its_grid() -> None:
    run = _train(_plans(), 0, 1)
    geometry = Geometry((7, 12, 11), (1.3, 0.9, 1.1), (5.125, -3.7, 2.0), FLIPPED)
    _image(Path("imgs") / "x.nii.gz", geometry)
    for folds in (["0"], ["0", "1"]):
        assert predict(Path("imgs"), Path("masks"), model=run, folds=folds, device="cpu", save_probabilities=True) == 0
        mask = read_labels(Path("masks") / "x.nii.gz")
        found = open_probabilities(Path("masks") / "x_probabilities.b2nd")
        assert found.geometry.same_grid(mask.geometry, 1e-3)
        assert found.labels == {"background": 0, "anterior": 1, "posterior": 2}
        values = found.array[:].astype(np.float32)
        np.testing.assert_allclose(values.sum(axis=0), 1, atol=3e-3)
        agreed = values.argmax(axis=0) == mask.array
        assert agreed[np.sort(values, axis=0)[-1] - np.sort(values, axis=0)[-2] > 2e-3].all()


def test_little_memory_costs_time_and_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run = str(_train(_plans(), 0, 1))
    _images("a", "b", "c")
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "--save_probabilities"]) == 0
    assert main(["-i", "imgs", "-o", "small", "-m", run, "--save_probabilities", "--max_memory", "0.001"]) == 0
    assert "done in the smallest portions" in capsys.readouterr().err
    assert main(["-i", "imgs", "-o", "large", "-m", run, "--save_probabilities", "--max_memory", "1000"]) == 0
    for case in ("a", "b", "c"):
        for folder in ("small", "large"):
            assert (Path(folder) / f"{case}.nii.gz").read_bytes() == (Path("masks") / f"{case}.nii.gz").read_bytes()
            ours, theirs = (open_probabilities(Path(f) / f"{case}_probabilities.b2nd").array[:] for f in (folder, "masks"))
            np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_every_kind_of_failure_is_named_and_the_others_finish(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, a middle and the last case fail, in reading, prediction and writing."""
    run = str(_train(_plans(), 0))
    _images("a", "b", "c", "d", "e")
    (Path("imgs") / "a_0000.nii.gz").write_bytes(b"this is no image")

    def failing_export(parts: Any, properties: Any, *rest: Any) -> Any:
        if properties.case == "c":
            raise RuntimeError("no mask of c")
        return export_stream(parts, properties, *rest)

    def failing_write(path: Path, *rest: Any) -> None:
        if path.name.startswith("e"):
            raise OSError("no file of e")
        write_labels(path, *rest)

    monkeypatch.setattr(predict_cases_module, "export_stream", failing_export)
    monkeypatch.setattr(mask_files_module, "write_labels", failing_write)
    assert main(["-i", "imgs", "-o", "masks", "-m", run, "--save_probabilities"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "3 of 5 cases failed, the others are written to masks"
    assert [line for line in lines if line.startswith(("  c:", "  e:"))] == ["  c: no mask of c", "  e: no file of e"]
    assert _masks() == ["b", "d"]
    assert not [path for path in Path("masks").iterdir() if path.name.startswith(".tmp")]
    assert not Path("masks/c_probabilities.b2nd").exists()


def test_the_next_image_is_read_while_one_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = _train(_plans(), 0)
    _images("a", "b")
    second_was_read = threading.Event()

    def noted_read(paths: Sequence[Path]) -> Any:
        volume = read_image(paths)
        if "b_0000" in paths[0].name:
            second_was_read.set()
        return volume

    def waiting_export(*arguments: Any) -> Any:
        assert second_was_read.wait(timeout=20)
        return export_stream(*arguments)

    monkeypatch.setattr(predict_cases_module, "read_image", noted_read)
    monkeypatch.setattr(predict_cases_module, "export_stream", waiting_export)
    assert predict(Path("imgs"), Path("masks"), model=run, device="cpu") == 0
    assert _masks() == ["a", "b"]


def test_flags_that_contradict_each_other_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-i", "imgs", "-o", "masks", "--disable_tta", "--mirror_axes", "1"]) == 2
    assert "--mirror_axes" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["-i", "imgs", "-o", "masks", "-step_size", "1.5"])
