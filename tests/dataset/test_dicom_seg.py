"""DICOM Segmentations: read back, they hold the mask in the place of the NIfTI mask, on the slices they were drawn on."""

from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.typing import NDArray

from fedsam_pipeline.dataset.dicom import SAME_DIRECTION
from fedsam_pipeline.dataset.dicom_seg import Algorithm, check_segment_names, check_series, write_segmentation
from fedsam_pipeline.dataset.volume import Geometry, read_image, read_labels, write_labels
from fedsam_pipeline.errors import FedsamError
from tests.dataset.series_for_tests import FRAME_OF_REFERENCE, GRID, ROOT_UID, STRAIGHT, hounsfield, write_series

sitk: Any = SimpleITK
TURN, LEAN = np.deg2rad(25.0), np.deg2rad(-15.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)
ABOUT_Z = np.array([[np.cos(TURN), -np.sin(TURN), 0.0], [np.sin(TURN), np.cos(TURN), 0.0], [0.0, 0.0, 1.0]])
ABOUT_X = np.array([[1.0, 0.0, 0.0], [0.0, np.cos(LEAN), -np.sin(LEAN)], [0.0, np.sin(LEAN), np.cos(LEAN)]])
OBLIQUE = tuple(float(value) for value in (ABOUT_Z @ ABOUT_X).ravel())
SEGMENTS: dict[str, tuple[int, ...]] = {"liver": (1,), "no such thing": (2,), "tumör": (3,)}
ALGORITHM = Algorithm("fedsam-pipeline", "0.1.0", "5d0c" * 16, {"plan_sha256": "5d0c" * 16})


def a_mask(size: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Classes 1 and 3 in places without symmetry; class 2 nowhere, nothing in the first plane."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[1:3, 1:3, 2:5] = 1
    mask[2:, 3, 1] = 3
    mask[-1, 0, 0] = 3
    return mask


def a_series(folder: Path, grid: Geometry = GRID, **more: Any) -> Path:
    tags = FRAME_OF_REFERENCE | more.pop("tags", {})
    return write_series(folder, hounsfield(grid.size), grid, tags=tags, **more)


def write(path: Path, folder: Path, mask: NDArray[Any] | None = None, segments: dict[str, tuple[int, ...]] = SEGMENTS) -> NDArray[Any]:
    """Writes a mask of the series in ``folder`` as DICOM and, under the same name, as NIfTI; returns it."""
    geometry = read_image([folder]).geometry
    mask = a_mask(geometry.size) if mask is None else mask
    write_segmentation(path, mask, geometry, [folder], segments, ALGORITHM, description="Segmentation, Dataset001_Demo")
    write_labels(path.with_suffix(".nii.gz"), mask, geometry)
    return mask


def read_onto(path: Path, reference: Path) -> list[NDArray[np.bool_]]:
    """What highdicom reads of every segment, put onto the grid of a NIfTI mask by patient coordinates alone."""
    segmentation = highdicom.seg.segread(path)
    image = sitk.ReadImage(str(reference))
    found = []
    for number in segmentation.segment_numbers:
        array = np.zeros(image.GetSize()[::-1], dtype=bool)
        volume = segmentation.get_volume(segment_numbers=[number], combine_segments=True, relabel=True, allow_missing_positions=True)
        for index in np.argwhere(volume.array):
            place = volume.map_indices_to_reference(index[None])[0]
            nearest = np.asarray(image.TransformPhysicalPointToContinuousIndex([float(value) for value in place]))
            assert np.abs(nearest - nearest.round()).max() < 1e-3
            array[tuple(nearest.round().astype(int)[::-1])] = True
        found.append(array)
    return found


@pytest.mark.parametrize("direction", [STRAIGHT, CORONAL, OBLIQUE])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("downwards", [False, True])
def test_it_lies_where_the_nifti_mask_lies(tmp_path: Path, direction: tuple[float, ...], reverse: bool, downwards: bool) -> None:
    """Whatever the slices' direction, the order of the files' names, and that of the instance numbers."""
    grid = Geometry((6, 5, 7), (2.5, 0.7, 0.6), (-10.0, -20.0, 30.0), direction)
    axis = np.asarray(direction).reshape(3, 3)[:, 2]
    numbers = np.arange(6)[::-1] if downwards else np.arange(6)
    folder = a_series(tmp_path / "s", grid, reverse=reverse, positions=[np.asarray(grid.origin) + axis * 2.5 * n for n in numbers])
    mask = write(tmp_path / "seg.dcm", folder)
    found = read_onto(tmp_path / "seg.dcm", tmp_path / "seg.nii.gz")
    assert np.array_equal(read_labels(tmp_path / "seg.nii.gz").array, mask)
    assert len(found) == 3
    for values, array in zip(SEGMENTS.values(), found, strict=True):
        assert np.array_equal(array, np.isin(mask, values))


def test_every_frame_names_the_slice_it_was_drawn_on(tmp_path: Path) -> None:
    grid = Geometry((6, 5, 7), (2.5, 0.7, 0.6), (-10.0, -20.0, 30.0), OBLIQUE)
    folder = a_series(tmp_path / "s", grid)
    mask = write(tmp_path / "seg.dcm", folder)
    places = {str(each.SOPInstanceUID): list(each.ImagePositionPatient) for each in map(pydicom.dcmread, folder.iterdir())}
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    listed = [str(each.ReferencedSOPInstanceUID) for each in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence]
    assert sorted(listed) == sorted(places)
    frames = []
    for pixels, frame in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        source = str(frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        assert list(frame.PlanePositionSequence[0].ImagePositionPatient) == places[source]
        number, plane = frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber, int(source.rsplit(".", 1)[1]) - 1
        assert np.array_equal(pixels, mask[plane] == number)
        frames.append((number, plane))
    assert sorted(frames) == sorted({(number, plane) for number in (1, 3) for plane in range(6) if np.any(mask[plane] == number)})


def test_it_says_what_the_segments_are_and_what_made_them(tmp_path: Path) -> None:
    folder = a_series(tmp_path / "s", tags={"0010|0020": "P17", "0020|0011": "4"})
    write(tmp_path / "seg.dcm", folder)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    source = pydicom.dcmread(next(folder.iterdir()))
    assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4" and data.SegmentationType == "BINARY" and data.SegmentsOverlap == "NO"
    assert [(each.SegmentNumber, each.SegmentLabel) for each in data.SegmentSequence] == list(enumerate(SEGMENTS, start=1))
    for segment in data.SegmentSequence:
        (identification,) = segment.SegmentationAlgorithmIdentificationSequence
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        assert (identification.AlgorithmName, identification.AlgorithmVersion) == ("fedsam-pipeline", "0.1.0")
        assert identification.AlgorithmParameters == f"plan_sha256={'5d0c' * 16}"
    assert len({tuple(segment.RecommendedDisplayCIELabValue) for segment in data.SegmentSequence}) == 3
    assert data.DeviceSerialNumber == "5d0c" * 16 and data.SoftwareVersions == "0.1.0"
    for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert data[name].value == source[name].value
    assert data.PatientID == "P17" and data.SeriesNumber == 1004 and data.SeriesInstanceUID != source.SeriesInstanceUID


def test_regions_are_segments_that_overlap(tmp_path: Path) -> None:
    folder = a_series(tmp_path / "s")
    regions = {"whole": (1, 2, 3), "core": (3,)}
    mask = write(tmp_path / "seg.dcm", folder, segments=regions)
    found = read_onto(tmp_path / "seg.dcm", tmp_path / "seg.nii.gz")
    assert np.array_equal(found[0], mask > 0) and np.array_equal(found[1], mask == 3)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert data.SegmentsOverlap == "YES" and [each.SegmentLabel for each in data.SegmentSequence] == ["whole", "core"]


def test_an_empty_mask_has_empty_frames(tmp_path: Path) -> None:
    """An object without frames is none; so all planes are there."""
    write(tmp_path / "seg.dcm", a_series(tmp_path / "s"), np.zeros(GRID.size, dtype=np.uint8))
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert data.NumberOfFrames == 3 * GRID.size[0] and not data.pixel_array.any()


def test_tags_that_were_removed_and_names_in_other_letters(tmp_path: Path) -> None:
    """As an anonymised series has them; a name in Latin 1 comes out in UTF-8."""
    folder = a_series(tmp_path / "s")
    for path in folder.iterdir():
        data = pydicom.dcmread(path)
        for name in ("PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
            del data[name]
        data.SpecificCharacterSet, data.PatientName = "ISO_IR 100", "Müller^Jörg"
        data.SpacingBetweenSlices = "-1.0"  # as some scanners write
        data.save_as(path)
    write(tmp_path / "seg.dcm", folder)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert data.PatientName == "Müller^Jörg" and data.SpecificCharacterSet == "ISO_IR 192" and not data.PatientID
    measures = data.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert (float(measures.SliceThickness), float(measures.SpacingBetweenSlices)) == (2.5, 2.5)


def test_directions_that_differ_in_the_last_digits_are_one_direction(tmp_path: Path) -> None:
    folder = a_series(tmp_path / "s")
    path = sorted(folder.iterdir())[1]
    data = pydicom.dcmread(path)
    data.ImageOrientationPatient = [1, SAME_DIRECTION / 2, 0, -SAME_DIRECTION / 2, 1, 0]
    data.save_as(path)
    mask = write(tmp_path / "seg.dcm", folder)
    assert np.array_equal(read_onto(tmp_path / "seg.dcm", tmp_path / "seg.nii.gz")[0], mask == 1)


def test_other_channels_of_the_study_are_sources_too(tmp_path: Path) -> None:
    first, second, other = a_series(tmp_path / "a"), a_series(tmp_path / "b", series="2"), tmp_path / "c"
    a_series(other, series="3", tags={"0020|000d": f"{ROOT_UID}.77"})
    geometry = read_image([first]).geometry
    for channels, expected in (([first, second], {"1", "2"}), ([first, other], {"1"})):
        path = tmp_path / "seg.dcm"
        write_segmentation(path, a_mask(geometry.size), geometry, channels, SEGMENTS, ALGORITHM, description="x")
        series = [str(each.SeriesInstanceUID) for each in pydicom.dcmread(path).ReferencedSeriesSequence]
        assert {uid.rsplit(".", 1)[1] for uid in series} == expected


def test_a_series_without_a_frame_of_reference_is_refused(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", hounsfield())
    with pytest.raises(FedsamError, match=r"lacks tags that a DICOM Segmentation needs[\s\S]*no FrameOfReferenceUID[\s\S]*as NIfTI"):
        check_series(folder)
    with pytest.raises(FedsamError, match="lacks tags"):
        write(tmp_path / "seg.dcm", folder)
    assert not (tmp_path / "seg.dcm").exists()
    check_series(a_series(tmp_path / "whole"))


def test_a_series_that_changed_in_between_is_refused(tmp_path: Path) -> None:
    folder = a_series(tmp_path / "s")
    geometry = read_image([folder]).geometry
    moved = Geometry(geometry.size, geometry.spacing, (-10.0, -20.0, 35.0), STRAIGHT)
    for grid in (moved, Geometry((3, 5, 6), geometry.spacing, geometry.origin, STRAIGHT)):
        with pytest.raises(FedsamError, match="a series changed while its mask was predicted"):
            write_segmentation(tmp_path / "seg.dcm", a_mask(grid.size), grid, [folder], SEGMENTS, ALGORITHM, description="x")
    assert not (tmp_path / "seg.dcm").exists()


@pytest.mark.parametrize("name", ["", " ", "x" * 65, "a\\b", "a\nb"])
def test_names_that_no_label_can_hold_are_refused(name: str) -> None:
    with pytest.raises(FedsamError, match="cannot be labels of DICOM segments"):
        check_segment_names(["liver", name])
    check_segment_names(["liver", "x" * 64, "腫瘍"])


def test_tags_that_the_standard_does_not_allow_are_named(tmp_path: Path) -> None:
    folder = a_series(tmp_path / "s", tags={"0010|0040": "X"})
    with pytest.raises(FedsamError, match=r"no DICOM Segmentation can be made[\s\S]*'X'") as caught:
        write(tmp_path / "seg.dcm", folder)
    assert str(folder) in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    folder = a_series(tmp_path / "s")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FedsamError, match="cannot write"):
        write(tmp_path / "file" / "seg.dcm", folder)
