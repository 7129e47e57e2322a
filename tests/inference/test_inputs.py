"""Which files become which cases, and every complaint about them."""

from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.inputs import find_cases


def _files(folder: Path, *names: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def _summary(source: Path, target: Path, *channels: str) -> dict[str, tuple[list[str], str]]:
    cases = find_cases(source, target, channels or ("MR",))
    return {case.case: ([path.name for path in case.channels], str(case.output.relative_to(target.parent))) for case in cases}


def test_folder_of_nnunet_names(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", "b_0000.nii.gz", "a_0001.nii.gz", "b_0001.nii.gz", "a_0000.nii.gz", "notes.txt", ".hidden_0000.nii.gz")
    assert _summary(folder, tmp_path / "out", "T1", "T2") == {
        "a": (["a_0000.nii.gz", "a_0001.nii.gz"], "out/a.nii.gz"),
        "b": (["b_0000.nii.gz", "b_0001.nii.gz"], "out/b.nii.gz"),
    }


def test_folder_of_plain_files_for_one_channel(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", "x.nrrd", "scan_0007.mha", "y_0000.nii.gz")
    assert _summary(folder, tmp_path / "out") == {
        "scan_0007": (["scan_0007.mha"], "out/scan_0007.mha"),
        "x": (["x.nrrd"], "out/x.nrrd"),
        "y": (["y_0000.nii.gz"], "out/y.nii.gz"),
    }


def test_single_files(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", "x.nrrd", "a_0000.nii.gz", "a_0001.nii.gz", "b_0003.nii")
    assert _summary(folder / "x.nrrd", tmp_path / "out") == {"x": (["x.nrrd"], "out/x.nrrd")}
    assert _summary(folder / "a_0000.nii.gz", tmp_path / "mask.nii.gz") == {"a": (["a_0000.nii.gz"], "mask.nii.gz")}
    assert _summary(folder / "b_0003.nii", tmp_path / "out") == {"b_0003": (["b_0003.nii"], "out/b_0003.nii")}
    both = ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert _summary(folder / "a_0001.nii.gz", tmp_path / "out", "T1", "T2") == {"a": (both, "out/a.nii.gz")}


def test_dicom_folders_are_images(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", "x_0000.nii.gz")
    for name in ("a_0000", "scan", "empty"):
        _files(folder / name, *(["1.dcm", "2.dcm"] if name != "empty" else []))
    assert _summary(folder, tmp_path / "out") == {
        "a": (["a_0000"], "out/a.nii.gz"),
        "scan": (["scan"], "out/scan.nii.gz"),
        "x": (["x_0000.nii.gz"], "out/x.nii.gz"),
    }
    assert _summary(folder / "scan", tmp_path / "out") == {"scan": (["scan"], "out/scan.nii.gz")}
    assert _summary(folder / "a_0000", tmp_path / "mask.nii") == {"a": (["a_0000"], "mask.nii")}
    with pytest.raises(FedsamError, match="the mask of a DICOM series is written as NIfTI, or as DICOM Segmentation"):
        find_cases(folder / "scan", tmp_path / "mask.nrrd", ["CT"])


def test_masks_of_dicom_folders_can_be_dicom(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a_0000", "scan"):
        _files(folder / name, "1.dcm")
    cases = find_cases(folder, tmp_path / "out", ["CT"], dicom_seg=True)
    assert [case.output for case in cases] == [tmp_path / "out" / "a.dcm", tmp_path / "out" / "scan.dcm"]
    assert all(case.is_dicom_seg for case in cases)
    assert [path.name for path in cases[0].possible_outputs] == ["a.nii.gz", "a.nii", "a.dcm"]
    for dicom_seg in (False, True):
        (case,) = find_cases(folder / "scan", tmp_path / "SEG.DCM", ["CT"], dicom_seg=dicom_seg)
        assert case.output == tmp_path / "SEG.DCM" and case.is_dicom_seg
    (case,) = find_cases(folder / "scan", tmp_path / "out", ["CT"], dicom_seg=True)
    assert case.output == tmp_path / "out" / "scan.dcm"
    assert not find_cases(folder / "scan", tmp_path / "out", ["CT"])[0].is_dicom_seg


def test_dicom_masks_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", "x.nii.gz", "y.nrrd")
    _files(folder / "scan", "1.dcm")
    out = tmp_path / "out"
    with pytest.raises(FedsamError, match=r"only a DICOM series has a DICOM Segmentation[\s\S]*2 image\(s\) of another format: x, y"):
        find_cases(folder, out, ["CT"], dicom_seg=True)
    with pytest.raises(FedsamError, match="only a DICOM series has a DICOM Segmentation"):
        find_cases(folder / "x.nii.gz", out / "x.dcm", ["CT"], dicom_seg=True)
    with pytest.raises(FedsamError, match="the mask must have the format of its image"):
        find_cases(folder / "x.nii.gz", out / "x.dcm", ["CT"])
    with pytest.raises(FedsamError, match=r"written as NIfTI, or as DICOM Segmentation[\s\S]*end -o with .dcm"):
        find_cases(folder / "scan", out / "x.nii.gz", ["CT"], dicom_seg=True)
    with pytest.raises(FedsamError, match="many images cannot become one mask"):
        find_cases(folder, tmp_path / "all.dcm", ["CT"])
    scans = tmp_path / "scans"
    scans.mkdir()
    _files(scans / "a", "1.dcm")
    among = ((scans, scans), (scans, scans / "masks"), (scans / "a", scans / "a"), (scans / "a", scans / "a" / "seg.dcm"))
    for source, target in among:
        with pytest.raises(FedsamError, match="a DICOM Segmentation would lie among the images"):
            find_cases(source, target, ["CT"], dicom_seg=True)


def test_dicom_channels_stand_in_folders_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a_0000", "a_0001", "b_0000"):
        _files(folder / name, "1.dcm")
    both = ["a_0000", "a_0001"]
    assert _summary(folder / "a_0000", tmp_path / "out", "T1", "T2") == {"a": (both, "out/a.nii.gz")}
    with pytest.raises(FedsamError, match="1 of 2 cases have a wrong number of channels: b"):
        find_cases(folder, tmp_path / "out", ["T1", "T2"])
    _files(folder, "b_0001.nii.gz")
    with pytest.raises(FedsamError, match="1 of 2 cases have a wrong number of channels: b"):
        find_cases(folder, tmp_path / "out", ["T1", "T2"])


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="the input is missing") as caught:
        find_cases(tmp_path / "nowhere", tmp_path / "out", ["MR"])
    assert "nowhere" in str(caught.value)


@pytest.mark.parametrize(("names", "found"), [((), "an empty folder"), (("a.png", "b.txt"), "a.png, b.txt")])
def test_a_folder_without_images_says_what_it_holds(tmp_path: Path, names: tuple[str, ...], found: str) -> None:
    with pytest.raises(FedsamError, match="no images found") as caught:
        find_cases(_files(tmp_path / "in", *names), tmp_path / "out", ["MR"])
    assert found in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        ("good_0000.nii.gz", "good_0001.nii.gz", "bad_0000.nii.gz"),
        ("good_0000.nii.gz", "good_0001.nii.gz", "bad_0000.nii.gz", "bad_0002.nii.gz"),
        ("good_0000.nii.gz", "good_0001.nii.gz", "bad_0000.nii.gz", "bad_0001.nrrd"),
        ("good_0000.nii.gz", "good_0001.nii.gz", "bad.nii.gz"),
        ("good_0000.nii.gz", "good_0001.nii.gz", "bad_0000.nii.gz", "bad_0001.nii.gz", "bad_0002.nii.gz"),
    ],
)
def test_a_wrong_number_of_channels_names_the_case(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(FedsamError, match="1 of 2 cases have a wrong number of channels: bad") as caught:
        find_cases(_files(tmp_path / "in", *names), tmp_path / "out", ["T1", "T2"])
    assert "2 file(s) a case: CASE_0000 (T1), CASE_0001 (T2)" in str(caught.value)


def test_two_images_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="wrong number of channels: a"):
        find_cases(_files(tmp_path / "in", "a.nii.gz", "a_0000.nii.gz"), tmp_path / "out", ["MR"])


def test_outputs_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    folder = _files(tmp_path / "in", "a.nii.gz", "b.txt")
    with pytest.raises(FedsamError, match="many images cannot become one mask"):
        find_cases(folder, tmp_path / "mask.nii.gz", ["MR"])
    with pytest.raises(FedsamError, match="a mask would overwrite its image"):
        find_cases(folder, folder, ["MR"])
    with pytest.raises(FedsamError, match="the mask must have the format of its image") as caught:
        find_cases(folder / "a.nii.gz", tmp_path / "mask.nrrd", ["MR"])
    assert "end -o with .nii.gz" in str(caught.value)
    with pytest.raises(FedsamError, match="not a supported image"):
        find_cases(folder / "b.txt", tmp_path / "out", ["MR"])
