"""FeTS 2022's training data as Synapse delivers it, made into ours."""

import json
from pathlib import Path

import numpy as np

from fedsam_pipeline.dataset.convert_fets import convert_fets
from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.nifti_header import read_header
from fedsam_pipeline.dataset.raw import load_raw_dataset
from tests.dataset.converted_for_tests import refused, values_of, write_mask, write_scan

SUBJECTS = {"FeTS2022_00000": 1, "FeTS2022_00002": 10, "FeTS2022_00003": 1}
SEQUENCES = ("t1", "t1ce", "t2", "flair")


def make_release(root: Path) -> Path:
    folder = root / "MICCAI_FeTS2022_TrainingData"
    for subject in SUBJECTS:
        for number, sequence in enumerate(SEQUENCES):
            write_scan(folder / subject / f"{subject}_{sequence}.nii.gz", 10 * int(subject[-1]) + number)
        write_mask(folder / subject / f"{subject}_seg.nii.gz", (0, 1, 2, 4) if subject != "FeTS2022_00003" else (0, 1, 2))
    rows = "".join(f"{site},{subject}\n" for subject, site in SUBJECTS.items())
    (folder / "partitioning_1.csv").write_text("Partition_ID,Subject_ID\n" + rows)
    (folder / "partitioning_2.csv").write_text("Subject_ID,Partition_ID\n" + "".join(f"{subject},0{subject[-1]}\n" for subject in SUBJECTS))
    return folder


def test_the_release(tmp_path: Path) -> None:
    source = make_release(tmp_path / "in" / "unpacked")
    dataset = convert_fets(tmp_path / "in", tmp_path / "raw", number=82)
    assert dataset.name == "Dataset082_FeTS2022"
    assert dataset.sites == {"site_01": ("FeTS2022_00000", "FeTS2022_00003"), "site_10": ("FeTS2022_00002",)}
    assert dataset.channel_names == ("T1", "T1ce", "T2", "FLAIR")
    assert dataset.labels == {"background": 0, "necrotic_core": 1, "edema": 2, "enhancing_tumor": 3}
    for path, sequence in zip(dataset.image_paths("FeTS2022_00002"), SEQUENCES, strict=True):
        assert path.read_bytes() == (source / "FeTS2022_00002" / f"FeTS2022_00002_{sequence}.nii.gz").read_bytes()
    content = json.loads((dataset.folder / "dataset.json").read_text())
    assert content["converted_from"]["label_values"] == {"0": 0, "1": 1, "2": 2, "4": 3}
    assert "2105.05874" in content["reference"] and "Synapse" in content["licence"]


def test_four_becomes_three_and_nothing_moves(tmp_path: Path) -> None:
    source = make_release(tmp_path)
    dataset = convert_fets(source, tmp_path / "raw", number=82)
    _, mask = verify_case(dataset, "FeTS2022_00000")
    assert mask.array.flat[:4].tolist() == [0, 1, 2, 3] and np.count_nonzero(mask.array) == 3
    before = read_header(source / "FeTS2022_00000" / "FeTS2022_00000_seg.nii.gz")
    after = read_header(dataset.label_path("FeTS2022_00000"))
    assert before is not None and after is not None and before.raw[252:328] == after.raw[252:328]
    unchanged = source / "FeTS2022_00003" / "FeTS2022_00003_seg.nii.gz"
    assert dataset.label_path("FeTS2022_00003").read_bytes() == unchanged.read_bytes()


def test_the_finer_partition_and_subjects_without_a_mask(tmp_path: Path) -> None:
    source = make_release(tmp_path)
    for sequence in SEQUENCES:
        write_scan(source / "FeTS2022_99999" / f"FeTS2022_99999_{sequence}.nii.gz")
    dataset = convert_fets(source, tmp_path / "raw", number=82, sites_file=source / "partitioning_2.csv")
    assert dataset.sites == {f"site_{number}": (f"FeTS2022_0000{number}",) for number in (0, 2, 3)}
    assert dataset.test_sites == {"test": ("FeTS2022_99999",)}


def test_the_documented_regions_load(tmp_path: Path) -> None:
    """docs/convert.md: BraTS's unions, scored as regions."""
    dataset = convert_fets(make_release(tmp_path), tmp_path / "raw", number=82)
    content = json.loads((dataset.folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [1, 3], "enhancing_tumor": 3}
    content["regions_class_order"] = [2, 1, 3]
    (dataset.folder / "dataset.json").write_text(json.dumps(content))
    again = load_raw_dataset(dataset.folder)
    assert again.regions == {"whole_tumor": (1, 2, 3), "tumor_core": (1, 3), "enhancing_tumor": (3,)}
    assert values_of(again, "FeTS2022_00000") == {0, 1, 2, 3}


def test_values_of_another_numbering_are_refused(tmp_path: Path) -> None:
    source = make_release(tmp_path)
    write_mask(source / "FeTS2022_00002" / "FeTS2022_00002_seg.nii.gz", (0, 1, 2, 3))
    text = refused(convert_fets, source, tmp_path / "raw")
    assert "label value 3 in FeTS2022_00002/FeTS2022_00002_seg.nii.gz, which may hold 0, 1, 2, 4" in text


def test_every_misfit_is_listed(tmp_path: Path) -> None:
    source = make_release(tmp_path)
    (source / "FeTS2022_00000" / "FeTS2022_00000_t1ce.nii.gz").unlink()
    (source / "FeTS2022_00002" / "FeTS2022_00002_seg.nii.gz").unlink()
    write_scan(source / "FeTS2022_00003" / "FeTS2022_00003_t2.nii")
    table = source / "partitioning_1.csv"
    table.write_text(table.read_text().replace("FeTS2022_00003", "FeTS2022_00004"))
    text = refused(convert_fets, source, tmp_path / "raw")
    for words in (
        "rows of partitioning_1.csv without a folder, 1: FeTS2022_00004",
        "folders with a mask that partitioning_1.csv does not name, 1: FeTS2022_00003",
        "folders without exactly one mask that partitioning_1.csv names, 1: FeTS2022_00002",
        "not exactly one _t1ce file in, 1: FeTS2022_00000",
        "not exactly one _t2 file in, 1: FeTS2022_00003",
        "Partition_ID, Subject_ID",
    ):
        assert words in text


def test_a_folder_of_something_else_shows_the_layout(tmp_path: Path) -> None:
    (tmp_path / "in" / "holiday").mkdir(parents=True)
    text = refused(convert_fets, tmp_path / "in", tmp_path / "raw")
    assert "not laid out as expected" in text and "no partitioning_1.csv" in text and "no folder of a subject" in text
    assert "{t1,t1ce,t2,flair,seg}.nii.gz" in text and "unpack" in text
