"""Formats of predicted masks and the names of their classes, through ``fedsam_predict`` with a threshold for a model."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch

from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_image
from fedsam_pipeline.entrypoints.predict import main
from fedsam_pipeline.files import write_json
from fedsam_pipeline.model.trained_files import BundleInfo
from fedsam_pipeline.pipeline import segmenter as segmenter_module
from fedsam_pipeline.specs.plans import Plans
from tests.dataset.series_for_tests import FRAME_OF_REFERENCE, write_series
from tests.inference.plans_for_tests import PixelwiseModel, make_plans

sitk: Any = SimpleITK
TURN = np.deg2rad(10.0)
OBLIQUE = (np.cos(TURN), -np.sin(TURN), 0.0, np.sin(TURN), np.cos(TURN), 0.0, 0.0, 0.0, 1.0)
GRID = Geometry((6, 10, 9), (1.0, 1.0, 1.0), (5.0, -3.0, 2.0), OBLIQUE)
BLOCK = np.zeros(GRID.size, dtype=bool)
BLOCK[2:4, 3:8, 2:6] = True
BESIDE = ["dataset.json", "logs", "prediction.json", "qc", "qc.csv", "qc.html", "qc.json"]
LABELS = {"background": 0, "anterior": 1, "posterior": 2}
REGIONS: dict[str, object] = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}


class Folds:
    """In place of ``FoldModels``: class 1 where the image is bright."""

    def __init__(self, folders: Sequence[Path], device: torch.device) -> None:
        weights = torch.tensor([[0.0, -1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        self.model = PixelwiseModel(3, weights).eval().to(device)
        self.configuration = BundleInfo.load(folders[0] / "bundle.json").configuration
        self._number = len(folders)

    def __len__(self) -> int:
        return self._number

    def use(self, fold: int) -> None:
        assert 0 <= fold < self._number


@pytest.fixture(autouse=True)
def _fake_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(segmenter_module, "FoldModels", Folds)
    monkeypatch.setattr(segmenter_module, "autocast_dtype", lambda _device: None)
    monkeypatch.chdir(tmp_path)


def trained(plans: Plans | None = None, dataset: dict[str, object] | None = None) -> str:
    fold = Path("run") / "fold_0"
    (plans or make_plans(target_spacing=(1.0, 1.0, 1.0))).save(fold / "plans.json")
    info = {"base_model": "fake", "base_weights_sha256": "random", "lora_rank": 0, "rounds_done": 1, "adapter_sha256": "0" * 64}
    BundleInfo.from_dict(info).save(fold / "bundle.json")
    if dataset is not None:
        write_json(fold / "dataset.json", dataset)
    return "run"


def values() -> np.ndarray:
    array = np.random.default_rng(0).integers(90, 110, GRID.size).astype(np.float32)
    array[BLOCK] += 1000
    return array


def series(folder: Path) -> Path:
    return write_series(folder, values(), GRID, tags=FRAME_OF_REFERENCE)


def segment(path: Path, number: int) -> np.ndarray:
    """A segment on the grid of the series: planes from the first slice on."""
    found = highdicom.seg.segread(path)
    volume = found.get_volume(segment_numbers=[number], combine_segments=True, relabel=True, allow_missing_positions=True)
    array = np.zeros(GRID.size, dtype=bool)
    matrix = np.asarray(GRID.direction).reshape(3, 3)
    for index in np.argwhere(volume.array):
        place = volume.map_indices_to_reference(index[None])[0]
        array[tuple(np.round(matrix.T @ (place - GRID.origin)).astype(int)[::-1])] = True
    return array


def test_one_series_becomes_one_dicom_segmentation() -> None:
    model = trained()
    assert main(["-i", str(series(Path("scan"))), "-o", "seg.dcm", "-m", model]) == 0
    assert main(["-i", "scan", "-o", "mask.nii.gz", "-m", model]) == 0
    assert np.array_equal(read_labels(Path("mask.nii.gz")).array, BLOCK)
    assert np.array_equal(segment(Path("seg.dcm"), 1), BLOCK)
    data = pydicom.dcmread("seg.dcm")
    assert [each.SegmentLabel for each in data.SegmentSequence] == ["anterior", "posterior"]
    plan = Plans.load(Path("run/fold_0/plans.json")).sha256()
    identification = data.SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert identification.AlgorithmParameters == f"plan_sha256={plan},adapters_sha256={'0' * 64}"
    assert data.DeviceSerialNumber == plan and identification.AlgorithmName == "fedsam-pipeline"
    assert data.SeriesDescription == "Segmentation, Dataset001_Demo"
    assert json.loads(Path("mask.json").read_text())["labels"] == LABELS
    assert not Path("seg.json").exists()


def test_a_folder_of_series_and_its_formats() -> None:
    model = trained()
    for name in ("one", "two"):
        series(Path("scans") / name)
    assert main(["-i", "scans", "-o", "masks", "-m", model, "--dicom_seg"]) == 0
    assert sorted(path.name for path in Path("masks").iterdir()) == sorted(["one.dcm", "two.dcm", *BESIDE])
    assert np.array_equal(segment(Path("masks/two.dcm"), 1), BLOCK)
    assert json.loads(Path("masks/dataset.json").read_text())["file_ending"] == ".dcm"
    Path("masks/two.dcm").unlink()
    before = Path("masks/one.dcm").stat().st_mtime_ns
    assert main(["-i", "scans", "-o", "masks", "-m", model, "--dicom_seg", "--continue_prediction"]) == 0
    assert Path("masks/two.dcm").is_file() and Path("masks/one.dcm").stat().st_mtime_ns == before
    assert main(["-i", "scans", "-o", "masks", "-m", model, "--continue_prediction"]) == 0  # the same masks once more
    assert len(list(Path("masks").glob("*.dcm"))) == len(list(Path("masks").glob("*.nii.gz"))) == 2
    assert main(["-i", "scans", "-o", "masks", "-m", model, "--disable_tta"]) == 0
    assert not list(Path("masks").glob("*.dcm")), "masks made in another way pass for these"


def test_regions_are_segments_and_stand_beside_masks() -> None:
    plans = make_plans(target_spacing=(1.0, 1.0, 1.0), labels={"background": 0, "whole_1": 1, "core": 2})
    model = trained(plans, REGIONS | {"patients": {"mueller": "Mueller"}})
    series(Path("scans") / "one")
    for flags in (["--dicom_seg"], []):
        assert main(["-i", "scans", "-o", "masks", "-m", model, *flags]) == 0
    assert [each.SegmentLabel for each in pydicom.dcmread("masks/one.dcm").SegmentSequence] == ["whole", "core"]
    assert np.array_equal(segment(Path("masks/one.dcm"), 1), BLOCK)
    found = json.loads(Path("masks/dataset.json").read_text())
    assert {key: found[key] for key in REGIONS} == REGIONS and "patients" not in found


def test_without_the_extra_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained()
    series(Path("scan"))
    monkeypatch.setitem(sys.modules, "highdicom", None)
    assert main(["-i", "scan", "-o", "masks", "-m", model, "--dicom_seg"]) == 2
    assert "pip install fedsam-pipeline[dicom]" in capsys.readouterr().err
    assert not Path("masks").exists()
    assert main(["-i", "scan", "-o", "masks", "-m", model]) == 0


def test_a_series_that_has_no_frame_of_reference_fails_alone(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained()
    series(Path("scans") / "one")
    write_series(Path("scans") / "two", values(), GRID)
    assert main(["-i", "scans", "-o", "masks", "-m", model, "--dicom_seg"]) == 1
    assert "two: a DICOM series lacks tags that a DICOM Segmentation needs" in capsys.readouterr().out
    assert [path.name for path in Path("masks").glob("*.dcm")] == ["one.dcm"]


@pytest.mark.parametrize("name", ["x" * 65, "a\\b"])
def test_class_names_that_no_segment_can_have_are_refused_first(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(make_plans(labels={"background": 0, "anterior": 1, name: 2}))
    series(Path("scan"))
    assert main(["-i", "scan", "-o", "seg.dcm", "-m", model]) == 2
    assert "class names cannot be labels of DICOM segments" in capsys.readouterr().err
    assert [path.name for path in Path().iterdir() if path.name not in ("run", "scan")] == []


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_names_beside_the_masks_of_other_formats(ending: str) -> None:
    model = trained()
    Path("imgs").mkdir()
    write_image(Path("imgs") / f"x{ending}", values(), GRID)
    assert main(["-i", "imgs", "-o", "masks", "-m", model]) == 0
    assert main(["-i", f"imgs/x{ending}", "-o", f"one{ending}", "-m", model]) == 0
    for path in (Path("masks/dataset.json"), Path("one.json")):
        found = json.loads(path.read_text())
        assert (found["labels"], found["channel_names"], found["file_ending"]) == (LABELS, {"0": "MR"}, ending)
    keys = sitk.ReadImage(f"masks/x{ending}").GetMetaDataKeys()
    assert ("Segment0_Name" in keys) == (ending == ".nrrd")


def test_the_dataset_of_somebody_else_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    model = trained()
    series(Path("scan"))
    write_json(Path("masks/dataset.json"), {"labels": {"background": 0, "heart": 1}, "sites": {}})
    before = Path("masks/dataset.json").read_bytes()
    assert main(["-i", "scan", "-o", "masks", "-m", model]) == 2
    assert "another file stands where the labels of the masks are to be written" in capsys.readouterr().err
    assert Path("masks/dataset.json").read_bytes() == before and len(list(Path("masks").iterdir())) == 1
