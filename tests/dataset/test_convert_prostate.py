"""The six-site prostate collection as it is downloaded, made into ours."""

import json
import logging
from pathlib import Path

import pytest

from fedsam_pipeline.dataset.convert_prostate import SITES, convert_prostate
from tests.dataset.converted_for_tests import refused, unpacked, values_of, write_mask, write_scan


def make_collection(root: Path, *, authors_names: bool = False) -> Path:
    """Two cases a site; BMC spells its masks with a capital S, RUNMC and BMC have two zones."""
    folder = root / "prostate"
    names = {"RUNMC": "ISBI", "BMC": "ISBI_1.5", "HCRUDB": "I2CVB"} if authors_names else {}
    for number, site in enumerate(SITES):
        place = folder / names.get(site, site)
        for case in ("Case00", "Case03"):
            write_scan(place / f"{case}.nii.gz", 10 * number + int(case[-1]))
            word = "Segmentation" if site == "BMC" else "segmentation"
            write_mask(place / f"{case}_{word}.nii.gz", (0, 1, 2) if site in ("RUNMC", "BMC") else (0, 1))
        (place / "train_list").write_text("Case00.nii.gz,Case00_segmentation.nii.gz\n")
    (folder / "README.txt").write_text("")
    (folder / "._RUNMC").write_bytes(b"junk")
    return folder


@pytest.mark.parametrize("authors_names", [False, True])
def test_the_collection(tmp_path: Path, authors_names: bool) -> None:
    source = make_collection(tmp_path, authors_names=authors_names)
    dataset = convert_prostate(source, tmp_path / "raw", number=12)
    assert dataset.name == "Dataset012_MultiSiteProstate"
    assert dataset.sites == {site: (f"{site}_Case00", f"{site}_Case03") for site in SITES}
    assert dataset.labels == {"background": 0, "prostate": 1} and dataset.channel_names == ("T2",)
    assert dataset.patients == {} and dataset.test_cases == ()
    for case in dataset.cases:
        assert values_of(dataset, case) == {0, 1}
    content = json.loads((dataset.folder / "dataset.json").read_text())
    assert content["converted_from"]["merged"] == {"BMC": {"1": 1, "2": 1}, "RUNMC": {"1": 1, "2": 1}}
    assert "PROMISE12" in content["licence"] and "MS-Net" in content["reference"] and content["numTraining"] == 12


def test_bytes_are_copied_where_nothing_changes(tmp_path: Path) -> None:
    source = make_collection(tmp_path)
    dataset = convert_prostate(source, tmp_path / "raw", number=1)
    assert dataset.image_paths("BMC_Case03")[0].read_bytes() == (source / "BMC" / "Case03.nii.gz").read_bytes()
    assert dataset.label_path("UCL_Case00").read_bytes() == (source / "UCL" / "Case00_segmentation.nii.gz").read_bytes()


def test_uncompressed_files_and_a_wrapping_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(tmp_path / "in" / "zip" / "hk" / "case38.nii")
    write_mask(tmp_path / "in" / "zip" / "hk" / "case38_segmentation.nii", (0, 1))
    with caplog.at_level(logging.INFO):
        dataset = convert_prostate(tmp_path / "in", tmp_path / "raw", number=1)
    assert dataset.sites == {"HK": ("HK_Case38",)}
    assert "left out, no folder: BIDMC, BMC, HCRUDB, RUNMC, UCL" in caplog.text
    assert unpacked(dataset.image_paths("HK_Case38")[0]) == (tmp_path / "in" / "zip" / "hk" / "case38.nii").read_bytes()
    assert dataset.label_path("HK_Case38").name == "HK_Case38.nii.gz"


def test_zones_outside_the_isbi_sites_and_third_values_are_refused(tmp_path: Path) -> None:
    source = make_collection(tmp_path)
    write_mask(source / "UCL" / "Case00_segmentation.nii.gz", (0, 1, 2))
    write_mask(source / "BMC" / "Case03_Segmentation.nii.gz", (0, 3))
    text = refused(convert_prostate, source, tmp_path / "raw")
    assert "label value 2 in UCL/Case00_segmentation.nii.gz, which may hold 0, 1" in text
    assert "label value 3 in BMC/Case03_Segmentation.nii.gz, which may hold 0, 1, 2" in text


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    source = make_collection(tmp_path)
    (source / "UCL" / "Case00_segmentation.nii.gz").unlink()
    (source / "HK" / "Case03.nii.gz").unlink()
    write_scan(source / "HK" / "Case00.nii")
    write_scan(source / "BMC" / "other.nii.gz")
    (source / "SiteG").mkdir()
    (source / "ISBI").mkdir()
    text = refused(convert_prostate, source, tmp_path / "raw")
    for words in (
        "UCL: images without a mask, 1: Case00",
        "HK: masks without an image, 1: Case03",
        "HK: more than one file for, 1: Case00",
        "BMC: unknown names, 1: other.nii.gz",
        "SiteG is no site",
        "ISBI and RUNMC are the same site",
        "CaseNN_segmentation.nii.gz",
    ):
        assert words in text


def test_no_collection_at_all(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no case" in refused(convert_prostate, tmp_path / "empty", tmp_path / "raw")
    assert "is missing" in refused(convert_prostate, tmp_path / "gone", tmp_path / "raw")


def test_an_existing_dataset(tmp_path: Path) -> None:
    source = make_collection(tmp_path)
    convert_prostate(source, tmp_path / "raw", number=7)
    assert "exists already" in refused(convert_prostate, source, tmp_path / "raw")
    assert convert_prostate(source, tmp_path / "raw", number=7, overwrite=True).cases[0] == "BIDMC_Case00"
