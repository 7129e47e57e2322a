"""Duplicates, shared patients and absent classes, on tiny files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from fedsam_pipeline.dataset.dataset_checks import absent_classes, repeated_images, shared_patients
from fedsam_pipeline.dataset.findings import Check, Finding
from fedsam_pipeline.dataset.integrity import CaseRecord, case_record
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.volume import write_image, write_labels
from tests.dataset.raw_for_tests import GRID, make_textured, textured

sitk: Any = SimpleITK  # it ships without types


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    return load_raw_dataset(make_textured(tmp_path))


def records_of(dataset: RawDataset) -> list[CaseRecord]:
    return [
        *(case_record(dataset, case) for case in dataset.cases),
        *(case_record(dataset, case, test=True) for case in dataset.test_cases),
    ]


def repeated(dataset: RawDataset) -> list[Finding]:
    return repeated_images(dataset, records_of(dataset))


def test_a_sound_dataset_has_no_findings(dataset: RawDataset) -> None:
    records = records_of(dataset)
    assert [record.findings for record in records] == [()] * 4
    assert (shared_patients(dataset), repeated_images(dataset, records), absent_classes(dataset, records)) == ([], [], [])


def test_the_same_image_under_two_names(dataset: RawDataset) -> None:
    for source, target in zip(dataset.image_paths("a2"), dataset.image_paths("b1"), strict=True):
        shutil.copyfile(source, target)
    (finding,) = repeated(dataset)
    assert (finding.case, finding.check, finding.severity) == ("a2", Check.DUPLICATE, "warning")
    assert finding.found == "2: a2 (a), b1 (b)" and "patients" in str(finding.fix)


def test_the_same_image_is_found_in_another_orientation_and_number_type(dataset: RawDataset) -> None:
    array = np.arange(60, dtype=np.int16).reshape(GRID.size)
    for channel in (0, 1):
        write_image(dataset.image_paths("a1")[channel], array + channel, GRID)
        image = sitk.DICOMOrient(sitk.ReadImage(str(dataset.image_paths("a1")[channel])), "RSP")
        sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat64), str(dataset.image_paths("b1")[channel]))
    (finding,) = repeated(dataset)
    assert finding.found == "2: a1 (a), b1 (b)"


def test_an_image_in_training_and_test(dataset: RawDataset) -> None:
    for source, target in zip(dataset.image_paths("b1"), dataset.test_image_paths("t1"), strict=True):
        shutil.copyfile(source, target)
    (finding,) = repeated(dataset)
    assert finding.what == "an image stands in both imagesTr and imagesTs" and finding.case == "b1"
    assert "t1 (imagesTs)" in str(finding.found)


def test_single_channels_that_repeat(dataset: RawDataset) -> None:
    shutil.copyfile(dataset.image_paths("a1")[1], dataset.image_paths("a2")[1])
    shutil.copyfile(dataset.image_paths("b1")[0], dataset.image_paths("b1")[1])
    within, between = repeated(dataset)
    assert within.what == "channels of one image are the same" and "T1, T2" in str(within.found)
    assert between.what == "an image stands under several case names (channel T2)"


def test_constant_channels_are_no_duplicates(dataset: RawDataset) -> None:
    for case in ("a1", "a2"):
        write_image(dataset.image_paths(case)[1], np.zeros(GRID.size, np.float32), GRID)
    assert repeated(dataset) == []


def test_a_patient_in_training_and_test(tmp_path: Path) -> None:
    patients = {"a1": "p", "t1": "p", "a2": "q"}
    (finding,) = shared_patients(load_raw_dataset(make_textured(tmp_path, patients=patients)))
    assert (finding.check, finding.severity, finding.case, finding.site) == (Check.PATIENTS, "warning", "a1", "a")
    assert finding.found == "p: a1 in imagesTr, t1 in imagesTs"


def test_one_case_name_in_training_and_test(tmp_path: Path) -> None:
    folder = make_textured(tmp_path, test_sites=None)
    for channel in (0, 1):
        write_image(folder / "imagesTs" / f"b1_{channel:04d}.nii.gz", textured(50 + channel), GRID)
    (finding,) = shared_patients(load_raw_dataset(folder))
    assert finding.found == "b1: b1 in imagesTr, b1 in imagesTs"


def test_classes_that_no_mask_holds(tmp_path: Path) -> None:
    folder = make_textured(tmp_path)
    only = np.zeros(GRID.size, np.uint8)
    only[0, 0, 0] = 1
    write_labels(folder / "labelsTr" / "b1.nii.gz", only, GRID)
    dataset = load_raw_dataset(folder)
    (finding,) = absent_classes(dataset, records_of(dataset))
    assert (finding.check, finding.case, finding.site) == (Check.CLASSES, None, "b")
    assert finding.what == "no mask of b holds the class nodule" and "site_labels" in str(finding.fix)
    for case in ("a1", "a2"):
        write_labels(dataset.label_path(case), only, GRID)
    (finding,) = absent_classes(dataset, records_of(dataset))
    assert (finding.site, finding.what) == (None, "no mask holds the class nodule")


def test_a_class_that_a_site_did_not_annotate_is_not_missed_there(tmp_path: Path) -> None:
    folder = make_textured(tmp_path, site_labels={"b": ["organ"]})
    only = np.zeros(GRID.size, np.uint8)
    only[0, 0, 0] = 1
    write_labels(folder / "labelsTr" / "b1.nii.gz", only, GRID)
    dataset = load_raw_dataset(folder)
    assert absent_classes(dataset, records_of(dataset)) == []
