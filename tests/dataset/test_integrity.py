"""Image and mask of a case belong together, or the user hears why not."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from fedsam_pipeline.dataset.findings import ALL_CHECKS, Check, FindingsError, Report, sorted_findings
from fedsam_pipeline.dataset.integrity import examine_case, verify_case
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.volume import Geometry, write_image, write_labels
from fedsam_pipeline.errors import FedsamError
from tests.dataset.raw_for_tests import GRID, make_raw, skew

sitk: Any = SimpleITK


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    return load_raw_dataset(make_raw(tmp_path))


def test_a_sound_case(dataset: RawDataset) -> None:
    image, labels = verify_case(dataset, "a2")
    assert image.array.shape == (2, 3, 4, 5) and image.array.dtype == np.float32
    assert labels.array.shape == (3, 4, 5)
    assert [float(channel.mean()) for channel in image.array] == [10.0, 11.0]


def moved(**changes: object) -> Geometry:
    return Geometry.from_dict(GRID.to_dict() | changes)


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (moved(size=(4, 4, 5)), "differ in shape"),
        (moved(spacing=(3.0, 1.0, 1.1)), r"lie in different places(.|\n)*0\.45 mm apart(.|\n)*spacing"),
        (moved(origin=(0.0, 2.0, 0.0)), r"lie in different places(.|\n)*2 mm apart(.|\n)*origin"),
        (moved(direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)), r"lie in different places(.|\n)*direction"),
    ],
)
def test_a_mask_on_another_grid(dataset: RawDataset, geometry: Geometry, words: str) -> None:
    write_labels(dataset.label_path("a1"), np.zeros(geometry.size, np.uint8), geometry)
    with pytest.raises(FedsamError, match=words) as caught:
        verify_case(dataset, "a1")
    assert "a1" in str(caught.value)


def test_header_noise_is_tolerated(dataset: RawDataset) -> None:
    write_labels(dataset.label_path("a1"), np.zeros(GRID.size, np.uint8), moved(origin=(2e-4, 0.0, -3e-4)))
    verify_case(dataset, "a1")


def test_channels_on_different_grids(dataset: RawDataset) -> None:
    write_image(dataset.image_paths("a1")[1], np.zeros(GRID.size, np.float32), moved(spacing=(3.5, 1.0, 1.0)))
    with pytest.raises(FedsamError, match="channels of one image lie on different grids"):
        verify_case(dataset, "a1")


def test_unknown_label_values_are_named(dataset: RawDataset) -> None:
    labels = np.zeros(GRID.size, np.uint8)
    labels[0, 0, :2] = (7, 9)
    write_labels(dataset.label_path("a1"), labels, GRID)
    with pytest.raises(FedsamError, match=r"does not name(.|\n)*label value 7, 9(.|\n)*0 \(background\), 1 \(organ\), 2 \(nodule\)"):
        verify_case(dataset, "a1")


def test_negative_and_fractional_label_values(dataset: RawDataset) -> None:
    write_image(dataset.label_path("a1"), np.full(GRID.size, -1, np.int16), GRID)
    with pytest.raises(FedsamError, match="label value -1"):
        verify_case(dataset, "a1")
    write_image(dataset.label_path("a1"), np.full(GRID.size, 0.25, np.float32), GRID)
    with pytest.raises(FedsamError, match="not whole numbers"):
        verify_case(dataset, "a1")


def test_nan_image(dataset: RawDataset) -> None:
    array = np.zeros(GRID.size, np.float32)
    array[0, 0, 0] = np.nan
    write_image(dataset.image_paths("a1")[0], array, GRID)
    with pytest.raises(FedsamError, match="NaN or infinite"):
        verify_case(dataset, "a1")


def test_a_label_that_vanished(dataset: RawDataset) -> None:
    dataset.label_path("a1").unlink()
    with pytest.raises(FedsamError, match="image file is missing"):
        verify_case(dataset, "a1")


def test_a_class_that_the_site_did_not_annotate_is_named_with_the_file(tmp_path: Path) -> None:
    labels = {"background": 0, "organ": 1, "nodule": 2, "ignore": 3}
    dataset = load_raw_dataset(make_raw(tmp_path, labels=labels, site_labels={"a": ["organ"]}))
    verify_case(dataset, "b1")
    words = r"a1 holds classes that its site says it did not annotate(.|\n)*label value 2 \(nodule\)(.|\n)*site_labels of a: organ"
    with pytest.raises(FedsamError, match=words) as caught:
        verify_case(dataset, "a1")
    assert caught.value.path == str(dataset.label_path("a1"))
    mask = np.zeros(GRID.size, np.uint8)
    mask[0, 0, :2] = (1, 3)
    write_labels(dataset.label_path("a1"), mask, GRID)
    _, found = verify_case(dataset, "a1")
    assert set(np.unique(found.array)) == {0, 1, 3}
    write_labels(dataset.label_path("a1"), mask + 3, GRID)
    with pytest.raises(FedsamError, match=r"label value 4, 6(.|\n)*3 \(ignore\)"):
        verify_case(dataset, "a1")


def findings_of(dataset: RawDataset, case: str = "a1", *, test: bool = False) -> list[tuple[str, Check | None, bool]]:
    """(severity, check, fixable) of all findings of the full report, but that the tiny images are constant."""
    found = examine_case(dataset, case, test=test, thorough=True).findings
    return [(finding.severity.value, finding.check, finding.fixable) for finding in found if finding.check is not Check.CONSTANT]


def test_all_faults_of_a_case_are_found_at_once(dataset: RawDataset) -> None:
    array = np.zeros(GRID.size, np.float32)
    array[0, 0, 0] = np.inf
    write_image(dataset.image_paths("a1")[0], array, GRID)
    write_image(dataset.image_paths("a1")[1], np.zeros(GRID.size, np.float32), moved(origin=(0.0, 2.0, 0.0)))
    labels = np.zeros(GRID.size, np.uint8)
    labels[0, 0, 0] = 7
    write_labels(dataset.label_path("a1"), labels, moved(spacing=(3.0, 1.0, 1.5)))
    checks = [Check.FINITE, Check.CHANNEL_GRID, Check.MASK_GRID, Check.KNOWN_VALUES]
    assert findings_of(dataset) == [("error", check, False) for check in checks]
    with pytest.raises(
        FindingsError, match=r"a1 has 4 faults(.|\n)*infinite(.|\n)*2 mm apart(.|\n)*0\.5 mm off(.|\n)*label value 7"
    ) as caught:
        verify_case(dataset, "a1")
    assert [finding.check for finding in caught.value.findings] == checks
    assert [finding.site for finding in caught.value.findings] == ["a"] * 4
    travelled = copy.copy(caught.value)  # rebuilt as on its way between processes
    assert (str(travelled), travelled.findings) == (str(caught.value), caught.value.findings)


@pytest.mark.parametrize("part", ["mask", "channel"])
def test_header_differences_by_size(dataset: RawDataset, part: str) -> None:
    check = Check.MASK_GRID if part == "mask" else Check.CHANNEL_GRID
    path = dataset.label_path("a1") if part == "mask" else dataset.image_paths("a1")[1]
    for offset, expected in (
        (0.0005, []),
        (0.005, [("warning", check, True)]),
        (0.09, [("error", check, True)]),
        (0.11, [("error", check, False)]),
    ):
        array = np.zeros(GRID.size, np.uint8)
        array[0, 0, 0] = 1
        write_image(path, array, moved(origin=(offset, 0.0, 0.0)))
        assert findings_of(dataset) == expected, offset
        assert len(examine_case(dataset, "a1").findings) == len([entry for entry in expected if entry[0] == "error"])


def test_a_direction_that_differs_is_an_error_in_mm(dataset: RawDataset) -> None:
    turned = moved(direction=(0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    write_labels(dataset.label_path("a1"), np.ones(GRID.size, np.uint8), turned)
    (finding,) = (entry for entry in examine_case(dataset, "a1").findings)
    assert finding.check is Check.MASK_GRID and finding.found is not None
    far = turned.corner_distance(GRID)
    assert f"corners up to {far:.4g} mm apart" in finding.found and "direction" in finding.found


def test_warnings_of_the_full_report(dataset: RawDataset) -> None:
    assert findings_of(dataset) == []
    write_labels(dataset.label_path("a1"), np.zeros(GRID.size, np.uint8), GRID)
    assert findings_of(dataset) == [("warning", Check.MASK_EMPTY, False)]
    write_image(dataset.label_path("a1"), np.ones(GRID.size, np.float32), GRID)
    assert findings_of(dataset) == [("warning", Check.MASK_TYPE, True)]
    image = sitk.GetImageFromArray(np.ones((1, *GRID.size), np.uint8), isVector=False)
    image.SetSpacing((*GRID.spacing[::-1], 1.0))
    sitk.WriteImage(image, str(dataset.label_path("a1")))
    assert findings_of(dataset) == [("warning", Check.ONE_FRAME, True)]
    verify_case(dataset, "a1")


def test_constant_images(dataset: RawDataset) -> None:
    def severities() -> list[str]:
        return [finding.severity.value for finding in examine_case(dataset, "a1", thorough=True).findings]

    assert severities() == ["error", "error"]
    write_image(dataset.image_paths("a1")[0], np.arange(60, dtype=np.float32).reshape(GRID.size), GRID)
    assert severities() == ["warning"]
    assert "(T2)" in examine_case(dataset, "a1", thorough=True).findings[0].what
    write_image(dataset.image_paths("a1")[1], np.arange(60, dtype=np.float32).reshape(GRID.size), GRID)
    assert severities() == []


@pytest.mark.parametrize("test", [False, True])
def test_4d_colour_and_skewed_images(dataset: RawDataset, test: bool) -> None:
    case = "t1" if test else "a1"
    first, second = dataset.test_image_paths(case) if test else dataset.image_paths(case)
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((2, *GRID.size), np.float32), isVector=False), str(first))
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((*GRID.size, 3), np.uint8), isVector=True), str(second))
    assert findings_of(dataset, case, test=test) == [("error", Check.SCALAR_3D, False)] * 2
    for slope, fixable in ((0.01, True), (0.3, False)):
        for path in (first, second):
            write_image(path, np.zeros(GRID.size, np.float32), GRID)
            skew(path, slope)
        assert findings_of(dataset, case, test=test) == [("error", Check.STRAIGHT, fixable)] * 2


def test_a_mask_of_a_test_case_is_looked_at_where_there_is_one(dataset: RawDataset) -> None:
    assert findings_of(dataset, "t1", test=True) == []
    write_labels(dataset.folder / "labelsTs" / "t1.nii.gz", np.full(GRID.size, 5, np.uint8), GRID)
    assert findings_of(dataset, "t1", test=True) == [("error", Check.KNOWN_VALUES, False)]


def test_a_report_as_json_and_text(dataset: RawDataset) -> None:
    write_labels(dataset.label_path("a1"), np.full(GRID.size, 5, np.uint8), moved(origin=(0.05, 0.0, 0.0)))
    findings = sorted_findings(examine_case(dataset, "a1", thorough=True).findings)
    report = Report(dataset.name, 3, 1, ALL_CHECKS, findings)
    content = json.loads(json.dumps(report.to_dict()))
    assert (content["num_errors"], content["num_warnings"]) == (4, 0)
    entry = next(entry for entry in content["findings"] if entry["check"] == "mask on the image's grid")
    keys = ["severity", "check", "case", "site", "what", "path", "found", "expected", "fix", "fixable"]
    assert list(entry) == keys and entry["fixable"] is True and entry["path"] == str(dataset.label_path("a1"))
    text = report.text()
    assert all(finding.what in text and str(finding.fix) in text for finding in findings)
    assert text.count("error [a1 at a]") == 4 and text.count("--fix     mends this") == 1
    assert "... and 3 more" in report.text(1)
