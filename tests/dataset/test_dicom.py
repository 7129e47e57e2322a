"""DICOM series as images: values in HU, placed exactly, and every series that is no volume refused with its reason in mm."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK

from fedsam_pipeline.dataset.dicom import is_series_folder, read_series, series_voxels, stored_files
from fedsam_pipeline.dataset.findings import Check
from fedsam_pipeline.dataset.fix import copy_folder, write_fixed_copy
from fedsam_pipeline.dataset.image_files import inspect_file
from fedsam_pipeline.dataset.integrity import case_record, verify_case
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.volume import Geometry, read_image, read_labels, write_labels
from fedsam_pipeline.entrypoints import plan_and_preprocess
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.budget import default_processes, largest_volume
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.preprocessing.store_case import input_signature
from fedsam_pipeline.specs.plans import Plans
from tests.dataset.raw_for_tests import write_content
from tests.dataset.series_for_tests import GRID, ROOT_UID, STRAIGHT, hounsfield, write_series

sitk: Any = SimpleITK
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
TURN = np.deg2rad(20.0)
OBLIQUE = (np.cos(TURN), -np.sin(TURN), 0.0, np.sin(TURN), np.cos(TURN), 0.0, 0.0, 0.0, 1.0)


def refused(folder: Path, check: Check) -> FedsamError:
    """The only fault of a series, found by ``check``."""
    series = read_series(folder)
    assert series.image is None
    ((found, error),) = series.faults
    assert found is check
    assert error.fix
    return error


@pytest.mark.parametrize("direction", [STRAIGHT, CORONAL, OBLIQUE])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_series_is_a_volume_in_its_place(tmp_path: Path, direction: tuple[float, ...], reverse: bool) -> None:
    grid = Geometry((4, 5, 6), (2.5, 0.7, 0.6), (-10.0, -20.0, 30.0), direction)
    values = hounsfield()
    volume = read_image([write_series(tmp_path / "case_0000", values, grid, reverse=reverse)])
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array[0], values)
    assert volume.geometry.same_grid(grid, 1e-4)


def test_positions_and_not_names_or_instance_numbers_order_the_slices(tmp_path: Path) -> None:
    values = hounsfield()
    downwards = [(-10.0, -20.0, 30.0 - 2.5 * index) for index in range(4)]
    volume = read_image([write_series(tmp_path / "s", values, positions=downwards)])
    assert np.array_equal(volume.array[0], values[::-1])
    assert volume.geometry.origin == pytest.approx((-10.0, -20.0, 22.5))
    assert volume.geometry.spacing == pytest.approx(GRID.spacing)


def test_slope_and_intercept_are_applied_slice_by_slice(tmp_path: Path) -> None:
    slopes, intercept = (1.0, 2.0, 0.5, 3.0), -1000.0
    stored = np.random.default_rng(0).integers(0, 900, GRID.size).astype(np.float64)
    values = stored * np.asarray(slopes)[:, None, None] + intercept
    folder = write_series(tmp_path / "s", values, slopes=slopes, intercept=intercept, reverse=False)
    for index, path in enumerate(sorted(folder.iterdir())):  # the pixel data stand last in the file
        raw = np.frombuffer(path.read_bytes()[-2 * stored[0].size :], dtype="<i2").reshape(stored[0].shape)
        assert np.array_equal(raw, stored[index])
    assert np.array_equal(read_image([folder]).array[0], values)


def test_other_files_beside_the_slices_do_not_matter(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    shutil.copy(next(folder.iterdir()), folder / "DICOMDIR")
    (folder / "notes.txt").write_text("left")
    (folder / "._slice001.dcm").write_bytes(b"macOS")
    for number, path in enumerate(sorted(folder.glob("*.dcm"))):
        if not path.name.startswith("."):
            path.rename(folder / f"IM{number}")  # known by their first bytes
    assert np.array_equal(read_image([folder]).array[0], hounsfield())
    assert series_voxels(folder) == np.prod(GRID.size)


def test_what_is_a_series_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    assert [is_series_folder(tmp_path / name) for name in ("s", "empty", "file", "gone")] == [True, False, False, False]
    assert not is_series_folder(tmp_path)  # the files lie one folder deeper
    assert len(stored_files(folder)) == 4
    assert stored_files(tmp_path / "file") == [tmp_path / "file"]


def test_a_folder_without_slices(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "notes.txt").write_text("x")
    error = refused(tmp_path / "s", Check.READABLE)
    assert "holds no DICOM slices" in error.what
    assert "notes.txt" in str(error.found)
    assert series_voxels(tmp_path / "s") == 0


def test_two_series_are_listed_with_how_to_choose(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    write_series(folder, hounsfield()[:3], series="2", prefix="other", tags={"0008|103e": "scout"})
    error = refused(folder, Check.READABLE)
    assert "holds 2 DICOM series" in error.what
    assert f"{ROOT_UID}.1: 4 files, CT abdomen" in str(error.found)
    assert f"{ROOT_UID}.2: 3 files, CT scout, such as other001.dcm" in str(error.found)
    assert "folder of their own" in str(error.fix)


@pytest.mark.parametrize(
    ("dropped", "words"), [((3,), ("about 1 missing in 1 gaps", "5 mm between")), ((2, 3, 6), ("about 3 missing in 2 gaps", "7.5 mm"))]
)
def test_missing_slices_are_counted_in_mm(tmp_path: Path, dropped: tuple[int, ...], words: tuple[str, ...]) -> None:
    grid = Geometry((10, 5, 6), GRID.spacing, GRID.origin, STRAIGHT)
    folder = write_series(tmp_path / "s", hounsfield(grid.size), grid, reverse=False)
    for number in dropped:
        (folder / f"slice{number:03d}.dcm").unlink()
    error = refused(folder, Check.READABLE)
    assert "lacks slices" in error.what
    assert all(word in str(error.found) for word in words)
    assert f"slice{dropped[0] - 1:03d}.dcm and " in str(error.found)
    assert "every 2.5 mm" in str(error.expected)


def test_uneven_slices_are_refused_and_rounded_positions_are_not(tmp_path: Path) -> None:
    along = (0.0, 2.5, 5.6, 7.5)
    error = refused(write_series(tmp_path / "s", hounsfield(), positions=[(0, 0, z) for z in along]), Check.READABLE)
    assert "not equally spaced" in error.what
    assert "1.9 to 3.1 mm" in str(error.found) and "slice002.dcm is 0.42 mm off" in str(error.found)
    rounded = [(0, 0, round(0.625 * index, 1)) for index in range(4)]
    assert inspect_file(write_series(tmp_path / "r", hounsfield(), positions=rounded)).faults == ()


def test_a_broken_number_of_frames_is_named(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    path = sorted(folder.iterdir())[2]
    data = pydicom.dcmread(path)
    data.add(pydicom.DataElement(0x00280008, "LO", "1A", validation_mode=0))
    data.save_as(path)
    error = refused(folder, Check.READABLE)
    assert "does not say how many frames" in error.what and error.path == str(path)
    assert "'1A'" in str(error.found)


def test_slices_in_one_place_are_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    write_series(folder, hounsfield(seed=1), prefix="again")
    error = refused(folder, Check.READABLE)
    assert "lie in the same place" in error.what
    assert "4 times" in str(error.found)


def test_a_tilted_gantry_is_refused_in_mm(tmp_path: Path) -> None:
    tilted = [(0.0, 0.5 * index, 2.5 * index) for index in range(4)]
    error = refused(write_series(tmp_path / "s", hounsfield(), positions=tilted), Check.STRAIGHT)
    assert "tilted gantry" in error.what
    assert "1.5 mm sideways over 7.5 mm" in str(error.found)


def test_slices_of_other_size_or_direction(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    write_series(folder, hounsfield((1, 7, 7)), prefix="wide", positions=[(-10.0, -20.0, 100.0)])
    error = refused(folder, Check.READABLE)
    assert "7 x 7 pixels" in str(error.found) and "wide" in str(error.found)
    folder = write_series(tmp_path / "t", hounsfield())
    scout = Geometry((1, 5, 6), GRID.spacing, GRID.origin, CORONAL)
    write_series(folder, hounsfield((1, 5, 6)), scout, prefix="turned", positions=[(-10.0, -20.0, 100.0)])
    error = refused(folder, Check.STRAIGHT)
    assert "different directions" in error.what and "turned" in str(error.found)


def test_a_single_slice_and_a_damaged_one(tmp_path: Path) -> None:
    assert "single slice" in refused(write_series(tmp_path / "one", hounsfield()[:1]), Check.SCALAR_3D).what
    folder = write_series(tmp_path / "s", hounsfield())
    path = folder / "slice002.dcm"
    path.write_bytes(path.read_bytes()[:-20])
    error = refused(folder, Check.READABLE)
    assert "cannot be read as a DICOM image" in error.what
    assert str(error.path) == str(path)


def test_colour_is_refused(tmp_path: Path) -> None:
    image = sitk.Compose([sitk.GetImageFromArray(np.ones((5, 6), np.uint8))] * 3)
    (tmp_path / "s").mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in range(2):
        image.SetMetaData("0020|000e", f"{ROOT_UID}.1")
        writer.SetFileName(str(tmp_path / "s" / f"{number}.dcm"))
        writer.Execute(image)
    assert "3 components a pixel in 2 of 2 files" in str(refused(tmp_path / "s", Check.SCALAR_3D).found)


def make_dicom_raw(root: Path, **changes: Any) -> Path:
    """A raw dataset of one channel: two DICOM cases, one of them a test case's, beside one NIfTI case."""
    folder = root / "Dataset008_Dicom"
    for number, place in enumerate(("imagesTr/a_0000", "imagesTr/b_0000", "imagesTs/t_0000")):
        write_series(folder / place, hounsfield(seed=number))
    labels = np.zeros(GRID.size, np.uint8)
    labels[1:3, 2:4, 2:5] = 1
    for case in ("a", "b"):
        write_labels(folder / "labelsTr" / f"{case}.nii.gz", labels, GRID)
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "organ": 1}, "sites": None, "test_sites": None, "numTraining": 2}
    write_content(folder, **(content | changes))
    return folder


def test_a_raw_dataset_of_series(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_dicom_raw(tmp_path))
    assert (dataset.cases, dataset.test_cases) == (("a", "b"), ("t",))
    assert [path.name for path in dataset.image_paths("a")] == ["a_0000"]
    image, labels = verify_case(dataset, "a")
    assert np.array_equal(image.array[0], hounsfield())
    assert labels.geometry.same_grid(image.geometry, 1e-3)
    assert case_record(dataset, "t", test=True).findings == ()
    assert default_processes(dataset) == 1
    assert largest_volume(dataset.image_paths("a")) == np.prod(GRID.size)


def test_a_dataset_map_may_name_series(tmp_path: Path) -> None:
    folder = make_dicom_raw(tmp_path)
    entries = {case: {"images": [f"imagesTr/{case}_0000"], "label": f"labelsTr/{case}.nii.gz"} for case in ("a", "b")}
    write_content(folder, channel_names={"0": "CT"}, labels={"background": 0, "organ": 1}, sites=None, test_sites=None, dataset=entries)
    assert verify_case(load_raw_dataset(folder), "b")[0].array.shape == (1, *GRID.size)


def test_a_channel_that_is_there_twice(tmp_path: Path) -> None:
    folder = make_dicom_raw(tmp_path)
    write_labels(folder / "imagesTr" / "a_0000.nii.gz", np.zeros(GRID.size, np.uint8), GRID)
    with pytest.raises(FedsamError, match="wrong number of channels") as caught:
        load_raw_dataset(folder)
    assert "a_0000 both as a file and as a folder" in str(caught.value)


def test_a_faulty_series_is_a_finding_of_its_case(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_dicom_raw(tmp_path))
    tilted = [(0.0, 0.5 * index, 2.5 * index) for index in range(4)]
    write_series(dataset.image_paths("b")[0], hounsfield(), positions=tilted)
    (finding,) = case_record(dataset, "b").findings
    assert (finding.check, finding.fixable) == (Check.STRAIGHT, False)
    with pytest.raises(FedsamError, match="tilted gantry"):
        verify_case(dataset, "b")


def test_fix_gives_a_mask_the_grid_of_its_series(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_dicom_raw(tmp_path))
    labels = read_labels(dataset.label_path("a"))
    write_labels(dataset.label_path("a"), labels.array, Geometry(GRID.size, GRID.spacing, (-10.03, -20.0, 30.0), STRAIGHT))
    (finding,) = case_record(dataset, "a").findings
    assert (finding.check, finding.fixable) == (Check.MASK_GRID, True)
    target = copy_folder(dataset, None)
    (mended,) = write_fixed_copy(dataset, target, [finding])
    assert mended.path == "labelsTr/a.nii.gz" and "header taken from a_0000" in mended.fixes[0]
    copy = load_raw_dataset(target)
    assert case_record(copy, "a").findings == ()
    assert sorted(path.name for path in copy.image_paths("a")[0].iterdir()) == [f"slice{number:03d}.dcm" for number in range(1, 5)]


def test_series_are_planned_and_preprocessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dicom_raw(tmp_path / "raw")
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"fedsam_{name}", str(tmp_path / name))
    assert plan_and_preprocess.main(["-m", "tiny_random", "-np", "1", "--verify_dataset_integrity"]) == 0
    folder = tmp_path / "preprocessed" / "Dataset008_Dicom"
    plans = Plans.load(folder / "plans.json")
    assert plans.channels[0].scheme == "ct"
    assert plans.target_spacing == pytest.approx(GRID.spacing)
    organs = np.concatenate([hounsfield(seed=seed)[1:3, 2:4, 2:5].ravel() for seed in (0, 1)])
    assert plans.channels[0].mean == pytest.approx(organs.mean(), rel=1e-6)  # HU, not stored numbers
    store = CaseStore(store_folder(folder, plans))
    assert store.cases() == ("a", "b")
    assert store.open("a").properties.input_files == ("a_0000",)


def test_a_change_of_one_slice_changes_the_signature(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_dicom_raw(tmp_path))
    before = input_signature(dataset, "a")
    assert input_signature(dataset, "a") == before
    path = next(dataset.image_paths("a")[0].iterdir())
    path.write_bytes(path.read_bytes() + b"\0\0")
    assert input_signature(dataset, "a") != before
