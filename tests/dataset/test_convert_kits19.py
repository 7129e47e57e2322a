"""KiTS19 as its repository lays it out, with FLamby's two tables of hospitals, made into ours."""

import gzip
import json
import logging
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.convert_kits19 import convert_kits19
from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.nifti_header import read_content, set_sform
from fedsam_pipeline.dataset.volume import Geometry, to_canonical, write_image, write_labels
from tests.dataset.converted_for_tests import refused, write_mask, write_scan

SITES = {"00000": 13, "00001": 7, "00002": 7, "00003": 13, "00004": 5, "00210": 7, "00211": 5}
PLAIN = Geometry((5, 4, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
AFFINE = (0.0, 0.0, -0.8, 0.0, 0.0, -0.8, 0.0, 0.0, -2.5, 0.0, 0.0, 0.0)
"""slices are the first axis and go down, 2.5 mm apart; NIfTI's RAS, row by row"""


def as_kits(path: Path) -> None:
    """Gives a ``.nii.gz`` file the affine that KiTS19 has."""
    content = read_content(path)
    set_sform(content, AFFINE, (2.5, 0.8, 0.8))
    path.write_bytes(gzip.compress(bytes(content)))


def make_clone(root: Path) -> Path:
    clone = root / "kits19"
    for number in SITES:
        folder = clone / "data" / f"case_{number}"
        write_scan(folder / "imaging.nii.gz", int(number))
        if int(number) < 210:
            write_mask(folder / "segmentation.nii.gz", (0, 1, 2))
    (clone / "data" / "kits.json").write_text("[]")
    (clone / "starter_code").mkdir()
    return clone


def anony_sites(root: Path, **changes: object) -> Path:
    path = root / "anony_sites.csv"
    rows = {number: site for number, site in (SITES | changes).items() if site is not None}
    path.write_text("case,site_id\n" + "".join(f"case_{number},{site}\n" for number, site in rows.items()))
    return path


def test_all_hospitals_with_enough_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clone = make_clone(tmp_path)
    with caplog.at_level(logging.INFO):
        dataset = convert_kits19(clone, tmp_path / "raw", number=64, sites_file=anony_sites(tmp_path), min_cases=2)
    assert dataset.name == "Dataset064_FedKiTS19"
    assert dataset.sites == {"site_07": ("case_00001", "case_00002"), "site_13": ("case_00000", "case_00003")}
    assert dataset.test_sites == {"site_07": ("case_00210",)}
    assert dataset.labels == {"background": 0, "kidney": 1, "tumor": 2} and dataset.channel_names == ("CT",)
    assert "left out, at hospitals with fewer than 2 labelled cases: 2: case_00004, case_00211" in caplog.text
    content = json.loads((dataset.folder / "dataset.json").read_text())
    assert content["licence"] == "CC BY-NC-SA 4.0" and "FLamby" in content["reference"]
    assert content["converted_from"]["left_out"] == ["case_00004", "case_00211"]
    assert dataset.image_paths("case_00000")[0].read_bytes() == (clone / "data" / "case_00000" / "imaging.nii.gz").read_bytes()
    assert dataset.label_path("case_00000").read_bytes() == (clone / "data" / "case_00000" / "segmentation.nii.gz").read_bytes()


def test_flambys_six_hospitals_with_its_test_cases(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clone, table = make_clone(tmp_path), tmp_path / "thresholded_sites.csv"
    table.write_text(
        "case_ids,site_ids,train_test_split,train_test_split_silo\n"
        "case_00001,0,train,train_0\ncase_00002,0,test,test_0\ncase_00000,1,train,train_1\ncase_00003,1,test,test_1\n"
    )
    with caplog.at_level(logging.INFO):
        dataset = convert_kits19(clone / "data", tmp_path / "raw", number=64, sites_file=table, min_cases=1)
    assert dataset.sites == {"site_0": ("case_00001",), "site_1": ("case_00000",)}
    assert dataset.test_sites == {"site_0": ("case_00002",), "site_1": ("case_00003",)}
    assert sorted(path.name for path in (dataset.folder / "labelsTs").iterdir()) == ["case_00002.nii.gz", "case_00003.nii.gz"]
    assert "left out, not in the table: 3: case_00004, case_00210, case_00211" in caplog.text


def test_slices_along_the_first_axis(tmp_path: Path) -> None:
    """The file's axes are (slice, row, column), so that ours are (column, row, slice) until the affine turns them."""
    clone = tmp_path / "kits19"
    case = clone / "data" / "case_00000"
    voxels = np.arange(np.prod(PLAIN.size), dtype=np.float32).reshape(PLAIN.size)
    write_image(case / "imaging.nii.gz", voxels, PLAIN)
    write_labels(case / "segmentation.nii.gz", (voxels > 40).astype(np.uint8), PLAIN)
    as_kits(case / "imaging.nii.gz")
    as_kits(case / "segmentation.nii.gz")
    table = anony_sites(tmp_path, **dict.fromkeys(list(SITES)[1:]))
    dataset = convert_kits19(clone, tmp_path / "raw", number=1, sites_file=table, min_cases=1)
    image, mask = verify_case(dataset, "case_00000")
    assert image.geometry.size == (5, 4, 3) and image.geometry.spacing == pytest.approx((0.8, 0.8, 2.5))
    turned = to_canonical(image)
    assert turned.geometry.size == (3, 4, 5) and turned.geometry.spacing == pytest.approx((2.5, 0.8, 0.8))
    assert np.array_equal(turned.array[0, ::-1], voxels.transpose(2, 1, 0))  # the first slice is the upper one, ours the lower
    assert np.array_equal(mask.array, image.array[0] > 40) and mask.geometry.same_grid(image.geometry)


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    clone = make_clone(tmp_path)
    (clone / "data" / "case_00001" / "segmentation.nii.gz").unlink()
    (clone / "data" / "case_00003" / "imaging.nii.gz").unlink()
    text = refused(convert_kits19, clone, tmp_path / "raw", sites_file=anony_sites(tmp_path, **{"00005": 7, "00212": 7}))
    for words in (
        "cases of the table without a folder, 1: case_00005",
        "no imaging.nii.gz in, 1: case_00003",
        "no segmentation.nii.gz in, 1: case_00001",
        "starter_code.get_imaging",
    ):
        assert words in text
    assert "case_00212" not in text  # a case without a mask need not be there


def test_unknown_values_and_too_few_cases(tmp_path: Path) -> None:
    clone, table = make_clone(tmp_path), anony_sites(tmp_path)
    text = refused(convert_kits19, clone, tmp_path / "raw", sites_file=table)
    assert "no hospital has enough labelled cases" in text and "at most 2" in text and "10 or more" in text
    write_mask(clone / "data" / "case_00000" / "segmentation.nii.gz", (0, 3))
    text = refused(convert_kits19, clone, tmp_path / "raw", sites_file=table, min_cases=1)
    assert "label value 3 in case_00000/segmentation.nii.gz, which may hold 0, 1, 2" in text


def test_tables_that_do_not_fit(tmp_path: Path) -> None:
    clone, table = make_clone(tmp_path), tmp_path / "table.csv"
    for text, words in (
        ("name,site\na,1\n", "lacks columns or rows"),
        ("case,site_id\nkidney,1\n", "no names of cases: 1: kidney"),
        ("case_ids,site_ids,train_test_split\ncase_00001,0,val\n", "unknown splits: 1: val"),
    ):
        table.write_text(text)
        assert words in refused(convert_kits19, clone, tmp_path / "raw", sites_file=table)
    (tmp_path / "empty").mkdir()
    assert "no folder case_NNNNN" in refused(convert_kits19, tmp_path / "empty", tmp_path / "raw", sites_file=anony_sites(tmp_path))
