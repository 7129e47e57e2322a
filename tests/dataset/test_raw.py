"""The raw layout: what loads, and every reason to refuse a dataset before a pixel is read."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.errors import FedsamError
from tests.dataset.raw_for_tests import make_raw, write_content


def message(folder: Path) -> str:
    """The error that loading raises; it always says how to mend it."""
    with pytest.raises(FedsamError) as caught:
        load_raw_dataset(folder)
    assert caught.value.fix
    return str(caught.value)


def test_sites_cases_and_paths(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_raw(tmp_path))
    assert dataset.name == "Dataset007_Tiny"
    assert dataset.channel_names == ("T1", "T2")
    assert list(dataset.labels.items()) == [("background", 0), ("organ", 1), ("nodule", 2)]
    assert list(dataset.sites.items()) == [("a", ("a1", "a2")), ("b", ("b1",))]
    assert dataset.test_sites == {"a": ("t1",)}
    assert dataset.cases == ("a1", "a2", "b1")
    assert dataset.test_cases == ("t1",)
    assert dataset.site_of("b1") == "b"
    with pytest.raises(KeyError):
        dataset.site_of("t1")
    files = [*dataset.image_paths("a1"), dataset.label_path("a1"), *dataset.test_image_paths("t1")]
    assert [file.name for file in files] == ["a1_0000.nii.gz", "a1_0001.nii.gz", "a1.nii.gz", "t1_0000.nii.gz", "t1_0001.nii.gz"]
    assert all(file.is_file() for file in files)


def test_a_relative_folder_has_its_full_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_raw(tmp_path))
    assert load_raw_dataset(Path()).name == "Dataset007_Tiny"


def test_without_sites_there_is_one(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_raw(tmp_path, sites=None, test_sites=None))
    assert dataset.sites == {"site_0": ("a1", "a2", "b1")}
    assert dataset.test_sites == {"site_0": ("t1",)}


def test_test_cases_of_unknown_site(tmp_path: Path) -> None:
    assert load_raw_dataset(make_raw(tmp_path, test_sites=None)).test_sites == {"test": ("t1",)}


def test_no_test_images_at_all(tmp_path: Path) -> None:
    folder = make_raw(tmp_path, test_sites=None)
    shutil.rmtree(folder / "imagesTs")
    assert load_raw_dataset(folder).test_sites == {}


def test_what_nnunet_and_macos_write_loads(tmp_path: Path) -> None:
    folder = make_raw(
        tmp_path,
        channel_names=None,
        modality={"0": "T1", "1": "T2"},
        overwrite_image_reader_writer="SimpleITKIO",
        regions_class_order=[1, 2],
        patients={"a1": "p", "a2": "p"},
        site_labels={"a": ["organ", "nodule"]},
    )
    (folder / "imagesTr" / "._a1_0000.nii.gz").write_bytes(b"junk")
    (folder / "labelsTr" / ".DS_Store").write_bytes(b"junk")
    dataset = load_raw_dataset(folder)
    assert dataset.channel_names == ("T1", "T2")
    assert dataset.patients == {"a1": "p", "a2": "p"}
    assert dataset.site_labels == {"a": ("organ", "nodule")}


def test_partial_labels_regions_and_an_ignore_label_load(tmp_path: Path) -> None:
    dataset = load_raw_dataset(make_raw(tmp_path, site_labels={"a": ["organ"]}, test_sites={"c": ["t1"]}))
    assert dataset.site_labels == {"a": ("organ",)}
    assert dataset.label_scheme.annotated(dataset.site_labels) == {"a": (1,)}
    write_content(dataset.folder, site_labels={"c": ["organ"]}, test_sites={"c": ["t1"]})
    assert load_raw_dataset(dataset.folder).site_labels == {"c": ("organ",)}  # a site of test cases only
    labels = {"background": 0, "whole": [1, 2], "nodule": [2], "ignore": 3}
    write_content(dataset.folder, labels=labels, regions_class_order=[1, 2], site_labels={"b": ["nodule"]})
    dataset = load_raw_dataset(dataset.folder)
    assert dataset.labels == {"background": 0, "whole_1": 1, "nodule": 2}
    assert (dataset.ignore_label, dataset.regions) == (3, {"whole": (1, 2), "nodule": (2,)})
    assert dataset.label_scheme.annotated(dataset.site_labels) == {"b": (2,)}


def test_an_explicit_dataset_map_loads(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(folder / "imagesTr", elsewhere)
    entries = {
        case: {"images": [str(elsewhere / f"{case}_0000.nii.gz"), f"../elsewhere/{case}_0001.nii.gz"], "label": f"labelsTr/{case}.nii.gz"}
        for case in ("a1", "a2", "b1")
    }
    write_content(folder, dataset=entries)
    dataset = load_raw_dataset(folder)
    assert dataset.cases == ("a1", "a2", "b1")
    assert all(path.is_file() for case in dataset.cases for path in (*dataset.image_paths(case), dataset.label_path(case)))

    entries["a1"]["images"] = ["gone_0000.nii.gz", "gone_0001.nii.gz"]
    write_content(folder, dataset=entries)
    assert "files that dataset.json lists are missing" in message(folder) and "2: a1 (gone_0000.nii.gz)" in message(folder)
    entries["a1"]["images"] = ["gone_0000.nii.gz"]
    write_content(folder, dataset=entries)
    assert "wrong number of channels" in message(folder) and "a1 (1)" in message(folder)
    write_content(folder, dataset={"../a1": entries["b1"]})
    assert "case names cannot be file names" in message(folder)
    write_content(folder, dataset={"a1": {"images": "a1"}})
    assert "entries of dataset are not usable" in message(folder)
    write_content(folder, dataset=["a1"])
    assert "dataset is not usable" in message(folder)


def test_missing_folder_and_unusual_name(tmp_path: Path) -> None:
    assert "raw dataset is missing" in message(tmp_path / "Dataset001_Gone")
    (tmp_path / "Organ").mkdir()
    assert "unusual name" in message(tmp_path / "Organ")


def test_missing_and_broken_dataset_json(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    (folder / "dataset.json").write_text("{")
    assert "cannot be read as JSON" in message(folder)
    (folder / "dataset.json").write_text("[]")
    assert "not a JSON object" in message(folder)
    (folder / "dataset.json").unlink()
    assert "file is missing" in message(folder)


def test_missing_keys_are_named_all_at_once(tmp_path: Path) -> None:
    text = message(make_raw(tmp_path, channel_names=None, labels=None, file_ending=None))
    assert "lacks keys" in text and "also channel_names, labels, file_ending" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"channel_names": {"0": "T1", "2": "T2"}}, "channel_names is not usable"),
        ({"channel_names": {}}, "channel_names is not usable"),
        ({"channel_names": ["T1", "T2"]}, "channel_names is not usable"),
        ({"labels": ["background"]}, "labels is not usable"),
        ({"labels": {"background": 0, "whole": [1, 2], "nodule": 2}}, "regions need regions_class_order"),
        ({"labels": {"background": 0, "organ": 1, "ignore": 3}}, "ignore label is not the highest value"),
        ({"labels": {"background": 0, "organ": 2}}, "not numbered as expected"),
        ({"labels": {"organ": 1}}, "not numbered as expected"),
        ({"labels": {"background": 0}}, "not numbered as expected"),
        ({"labels": {"0": "background", "1": "organ"}}, "not numbered as expected"),
        ({"labels": {"background": 0, "organ": True}}, "not numbered as expected"),
        ({"file_ending": ".dcm"}, "file_ending is unknown"),
        ({"file_ending": ".mha"}, "has no cases"),
        ({"sites": {"a": ["a1", "a2"], "b": ["b1", "a1"]}}, "cases are in sites more than once"),
        ({"sites": {"a": ["a1", "a2", "a1"], "b": ["b1"]}}, "cases are in sites more than once"),
        ({"sites": {"a": ["a1", "a2", "b1"], "b": []}}, "sites has empty sites"),
        ({"sites": {"a": ["a1", "a2", "b1", "c1_0000"]}}, "sites names cases that have no files"),
        ({"sites": {"a": ["a1", "b1"]}}, "cases belong to none of the sites"),
        ({"sites": {}}, "sites is not usable"),
        ({"sites": {"a": "a1"}}, "sites is not usable"),
        ({"sites": {"../a": ["a1", "a2", "b1"]}}, "site names cannot be file names"),
        ({"sites": {"a": ["a1", "a2"], "A": ["b1"]}}, "differ only in upper and lower case"),
        ({"test_sites": {"a": ["t2"]}}, "test_sites names cases that have no files"),
        ({"patients": {"zz": "p"}}, "patients names cases that do not exist"),
        ({"patients": {"a1": 3}}, "patients is not usable"),
        ({"site_labels": {"a": ["background"]}}, "site_labels has sites that annotated nothing"),
        ({"site_labels": {"a": [1]}}, "site_labels is not usable"),
        ({"site_labels": {"z": ["organ"]}}, "site_labels names sites or classes that do not exist"),
        ({"site_labels": {"a": ["spleen"]}}, "site_labels names sites or classes that do not exist"),
        ({"site_labels": ["organ"]}, "site_labels is not usable"),
    ],
)
def test_unusable_keys(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    assert words in message(make_raw(tmp_path, **changes))


def test_a_case_in_two_sites_is_named_with_both(tmp_path: Path) -> None:
    assert "1: a1 (a, b)" in message(make_raw(tmp_path, sites={"a": ["a1", "a2"], "b": ["b1", "a1"]}))


def test_many_offending_cases_are_counted(tmp_path: Path) -> None:
    text = message(make_raw(tmp_path, sites={"a": ["a1", "a2", "b1", *(f"x{number}" for number in range(9))]}))
    assert "9: x0 (a), x1 (a), x2 (a), x3 (a), x4 (a), ..." in text


def test_missing_and_extra_channels(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    (folder / "imagesTr" / "a1_0001.nii.gz").rename(folder / "imagesTr" / "b1_0002.nii.gz")
    text = message(folder)
    assert "wrong number of channels" in text and "2: a1_0001 missing, b1_0002 too many" in text and "2 files a case" in text


def test_wrong_channel_count_of_a_test_case(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    (folder / "imagesTs" / "t1_0001.nii.gz").unlink()
    assert "t1_0001 missing" in message(folder)


def test_names_without_channel_number(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    (folder / "imagesTr" / "a1_0000.nii.gz").rename(folder / "imagesTr" / "a1.nii.gz")
    assert "lack the channel number" in message(folder)


def test_missing_labels_and_images(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    (folder / "labelsTr" / "a1.nii.gz").rename(folder / "labelsTr" / "zz.nii.gz")
    text = message(folder)
    assert "labels are missing" in text and "no mask for 1: a1" in text
    shutil.copy(folder / "labelsTr" / "zz.nii.gz", folder / "labelsTr" / "a1.nii.gz")
    assert "masks have no image" in message(folder) and "1: zz" in message(folder)
    shutil.rmtree(folder / "labelsTr")
    assert "a folder of the raw dataset is missing" in message(folder)


def test_all_faults_of_the_files_are_named_at_once(tmp_path: Path) -> None:
    folder = make_raw(tmp_path)
    (folder / "imagesTr" / "a1_0001.nii.gz").unlink()
    (folder / "imagesTs" / "t1_0001.nii.gz").unlink()
    (folder / "labelsTr" / "a2.nii.gz").rename(folder / "labelsTr" / "zz.nii.gz")
    text = message(folder)
    for words in ("4 kinds of faults", "1: a1_0001 missing", "1: t1_0001 missing", "no mask for 1: a2", "masks have no image", "1: zz"):
        assert words in text
    (folder / "labelsTr" / "zz.nii.gz").rename(folder / "labelsTr" / "a2.nii.gz")
    shutil.copy(folder / "imagesTr" / "a1_0000.nii.gz", folder / "imagesTr" / "a1_0001.nii.gz")
    assert "kinds of faults" not in message(folder)
