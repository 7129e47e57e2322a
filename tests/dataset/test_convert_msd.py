"""Decathlon tasks, as they come out of the published archives, made into ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from fedsam_pipeline.dataset.convert_msd import convert_msd
from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.volume import Geometry, read_image, write_image, write_labels
from fedsam_pipeline.errors import FedsamError

sitk: Any = SimpleITK
GRID = Geometry((3, 4, 5), (3.0, 1.0, 0.5), (-10.0, 20.0, 30.0), (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))


def write_4d(path: Path, channels: int) -> np.ndarray[Any, Any]:
    """A file as Task01 and Task05 have them: channels are the fourth axis."""
    array = np.random.default_rng(0).normal(size=(channels, *GRID.size)).astype(np.float32)
    parts = []
    for channel in array:
        part = sitk.GetImageFromArray(channel)
        part.SetSpacing(GRID.spacing[::-1])
        part.SetOrigin(GRID.origin)
        part.SetDirection(GRID.direction)
        parts.append(part)
    sitk.WriteImage(sitk.JoinSeries(parts), str(path))
    return array


def make_task(root: Path, *, channels: int = 1, name: str = "Task04_Hippocampus", **changes: Any) -> Path:
    """Two labelled cases, one test case, and the junk that macOS leaves."""
    task = root / name
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (task / part).mkdir(parents=True)
    for part, case in (("imagesTr", "case_001"), ("imagesTr", "case_002"), ("imagesTs", "case_003")):
        if channels == 1:
            write_image(task / part / f"{case}.nii.gz", np.ones(GRID.size, np.float32), GRID)
        else:
            write_4d(task / part / f"{case}.nii.gz", channels)
        (task / part / f"._{case}.nii.gz").write_bytes(b"junk")
    for case in ("case_001", "case_002"):
        write_labels(task / "labelsTr" / f"{case}.nii.gz", np.ones(GRID.size, np.uint8), GRID)
    content = {
        "name": "Hippocampus",
        "description": "Left and right hippocampus segmentation",
        "reference": "Vanderbilt University Medical Center",
        "licence": "CC-BY-SA 4.0",
        "relase": "1.0 04/05/2018",
        "tensorImageSize": "3D",
        "modality": {str(channel): f"MR{channel}" for channel in range(channels)},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": 2,
        "numTest": 1,
        "training": [
            {"image": f"./imagesTr/{case}.nii.gz", "label": f"./labelsTr/{case}.nii.gz"} for case in ("case_001", "._case_001", "case_002")
        ],
        "test": ["./imagesTs/case_003.nii.gz", "./imagesTs/._case_003.nii.gz"],
    } | changes
    (task / "dataset.json").write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return task


def refused(task: Path, root: Path, **keywords: Any) -> str:
    """The error of a conversion, which leaves nothing behind."""
    before = sorted(root.rglob("*")) if root.exists() else []
    with pytest.raises(FedsamError) as caught:
        convert_msd(task, root, **keywords)
    assert (sorted(root.rglob("*")) if root.exists() else []) == before
    return str(caught.value)


def test_a_scalar_task(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    dataset = convert_msd(task, tmp_path / "raw")
    assert dataset.name == "Dataset004_Hippocampus"
    assert dataset.cases == ("case_001", "case_002") and dataset.test_cases == ("case_003",)
    assert dataset.labels == {"background": 0, "Anterior": 1, "Posterior": 2}
    assert dataset.channel_names == ("MR0",)
    content = json.loads((dataset.folder / "dataset.json").read_text())
    assert content["licence"] == "CC-BY-SA 4.0" and content["description"].startswith("Left")
    assert dataset.image_paths("case_001")[0].read_bytes() == (task / "imagesTr" / "case_001.nii.gz").read_bytes()
    assert not list(dataset.folder.rglob("._*"))
    verify_case(dataset, "case_002")


def test_channels_of_a_4d_task_become_files(tmp_path: Path) -> None:
    task = make_task(tmp_path, channels=3, name="Task01_BrainTumour")
    array = write_4d(task / "imagesTr" / "case_001.nii.gz", 3)
    dataset = convert_msd(task, tmp_path / "raw")
    assert dataset.name == "Dataset001_BrainTumour"
    image, _ = verify_case(dataset, "case_001")
    assert np.array_equal(image.array, array)
    assert image.geometry.same_grid(GRID)
    assert [path.name for path in dataset.test_image_paths("case_003")] == [f"case_003_{channel:04d}.nii.gz" for channel in range(3)]
    assert read_image(dataset.test_image_paths("case_003")).array.shape == (3, 3, 4, 5)


def test_number_name_and_test_less_tasks(tmp_path: Path) -> None:
    task = make_task(tmp_path, test=None)
    assert convert_msd(task, tmp_path / "raw", number=12).name == "Dataset012_Hippocampus"
    task.rename(tmp_path / "somewhere")
    assert "number is unknown" in refused(tmp_path / "somewhere", tmp_path / "raw")
    assert convert_msd(tmp_path / "somewhere", tmp_path / "raw", number=13).name == "Dataset013_Hippocampus"


def test_sites_of_labelled_and_test_cases(tmp_path: Path) -> None:
    task, sites = make_task(tmp_path), tmp_path / "sites.json"
    sites.write_text('{"b": ["case_001", "case_003"], "a": ["case_002"]}')
    dataset = convert_msd(task, tmp_path / "raw", sites_file=sites)
    assert dataset.sites == {"a": ("case_002",), "b": ("case_001",)}
    assert dataset.test_sites == {"b": ("case_003",)}
    sites.write_text('{"b": ["case_001"], "a": ["case_002"]}')
    assert convert_msd(task, tmp_path / "raw2", sites_file=sites).test_sites == {"test": ("case_003",)}
    for text, words in (
        ('{"b": ["case_001"]}', "belong to none of the sites"),
        ('{"b": ["case_001", "case_002", "case_009"]}', "have no files"),
        ('["case_001"]', "sites file has another shape"),
        ("{", "cannot be read as JSON"),
    ):
        sites.write_text(text)
        assert words in refused(task, tmp_path / "raw3", sites_file=sites)


def test_an_existing_dataset(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    convert_msd(task, tmp_path / "raw")
    assert "exists already" in refused(task, tmp_path / "raw")
    convert_msd(task, tmp_path / "raw", overwrite=True)
    (tmp_path / "raw" / "Dataset005_Prostate").mkdir()
    assert "number 5 is taken" in refused(task, tmp_path / "raw", number=5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"modality": None, "training": None}, "no modality, training"),
        ({"training": ["case_001"]}, "lists of cases have another shape"),
        ({"training": []}, "no labelled cases"),
        ({"training": [{"image": "imagesTr/case_001.nii.gz", "label": "labelsTr/case_001.nii.gz"}] * 2}, "listed more than once"),
        ({"test": ["./imagesTr/case_001.nii.gz"]}, "listed more than once"),
        ({"test": ["./imagesTs/gone.nii.gz"]}, "are missing"),
        ({"test": ["./imagesTs/case_003.dcm"]}, "a file that is no image"),
        ({"modality": {"0": "MRI", "1": "CT"}}, "wrong number of channels"),
        ({"modality": {"1": "MRI"}}, "channel_names is not usable"),
        ({"labels": {"background": 0}}, "labels is not usable"),
        ({"labels": {"0": "background", "2": "Anterior"}}, "not numbered as expected"),
    ],
)
def test_tasks_that_are_none(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(make_task(tmp_path, **changes), tmp_path / "raw")


def test_no_task_at_all(tmp_path: Path) -> None:
    assert "file is missing" in refused(tmp_path, tmp_path / "raw")


def test_mixed_endings_and_unreadable_files(tmp_path: Path) -> None:
    task = make_task(tmp_path)
    (task / "imagesTr" / "case_002.nii.gz").write_bytes(b"junk" * 100)
    assert "cannot be read" in refused(task, tmp_path / "raw")
    task = make_task(tmp_path / "other", test=["./imagesTs/case_003.mha"])
    write_image(task / "imagesTs" / "case_003.mha", np.ones(GRID.size, np.float32), GRID)
    assert "mixes file endings" in refused(task, tmp_path / "raw")
