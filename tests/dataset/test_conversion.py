"""What the converters share: tables, names of sites, and masks and images that reach our layout unharmed."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.dataset.conversion import SourceCase, case_keys, copy_as, find_root, read_table, site_names, stem_of, write_dataset
from fedsam_pipeline.dataset.nifti_header import read_header
from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_labels
from fedsam_pipeline.errors import FedsamError
from tests.dataset.converted_for_tests import GRID, unpacked, write_mask, write_scan

CONTENT: dict[str, Any] = {"channel_names": {"0": "T2"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}


def make_case(folder: Path, name: str, values: tuple[int, ...], mapping: dict[int, int], **keywords: Any) -> SourceCase:
    write_scan(folder / f"{name}.nii.gz")
    write_mask(folder / f"{name}_mask.nii.gz", values)
    return SourceCase(name, (folder / f"{name}.nii.gz",), folder / f"{name}_mask.nii.gz", values=mapping, **keywords)


def test_masks_are_copied_or_renumbered_in_their_place(tmp_path: Path) -> None:
    same = make_case(tmp_path / "in", "same", (0, 1), {0: 0, 1: 1, 2: 1}, site="a")
    merged = make_case(tmp_path / "in", "merged", (0, 1, 2), {0: 0, 1: 1, 2: 1}, site="b", held_out=True)
    dataset = write_dataset(tmp_path / "Dataset001_X", tmp_path / "in", [same, merged], CONTENT, overwrite=False, progress=False)
    assert dataset.label_path("same").read_bytes() == (tmp_path / "in" / "same_mask.nii.gz").read_bytes()
    assert dataset.image_paths("same")[0].read_bytes() == (tmp_path / "in" / "same.nii.gz").read_bytes()
    assert dataset.sites == {"a": ("same",)} and dataset.test_sites == {"b": ("merged",)}
    path = dataset.folder / "labelsTs" / "merged.nii.gz"
    assert read_labels(path).array.flat[:3].tolist() == [0, 1, 1]
    before, after = read_header(tmp_path / "in" / "merged_mask.nii.gz"), read_header(path)
    assert before is not None and after is not None
    assert (after.raw[76:108], after.raw[252:328]) == (before.raw[76:108], before.raw[252:328])  # pixdim, qform and sform


def test_unknown_values_are_all_named_and_nothing_is_left(tmp_path: Path) -> None:
    cases = [make_case(tmp_path / "in", f"c{number}", (0, number), {0: 0, 1: 1}) for number in range(1, 9)]
    with pytest.raises(FedsamError) as caught:
        write_dataset(tmp_path / "raw" / "Dataset001_X", tmp_path / "in", cases, CONTENT, overwrite=False, progress=False)
    text = str(caught.value)
    assert "label value 2 in c2_mask.nii.gz, which may hold 0, 1" in text and "c6_mask" in text and "and 2 more masks" in text
    assert not list((tmp_path / "raw").iterdir())


def test_a_renumbered_mask_keeps_its_affine_to_the_bit(tmp_path: Path) -> None:
    """Also one whose numbers are not round, and whose file was not compressed."""
    grid = Geometry(GRID.size, (1 / 3, 0.7, np.pi), (1e3 / 7, -2 / 3, 0.1), GRID.direction)
    write_scan(tmp_path / "a.nii.gz", grid=grid)
    write_labels(tmp_path / "m.nii", np.full(grid.size, 4, np.uint8), grid)
    case = SourceCase("a", (tmp_path / "a.nii.gz",), tmp_path / "m.nii", values={0: 0, 4: 1})
    dataset = write_dataset(tmp_path / "Dataset001_X", tmp_path, [case], CONTENT, overwrite=False, progress=False)
    assert unpacked(dataset.label_path("a"))[252:328] == unpacked(tmp_path / "m.nii")[252:328]
    assert set(np.unique(read_labels(dataset.label_path("a")).array)) == {1}


def test_nii_is_compressed_without_a_change(tmp_path: Path) -> None:
    write_scan(tmp_path / "a.nii")
    for number in (1, 2):
        copy_as(tmp_path / "a.nii", tmp_path / f"{number}.nii.gz")
    assert gzip.decompress((tmp_path / "1.nii.gz").read_bytes()) == (tmp_path / "a.nii").read_bytes()
    assert (tmp_path / "1.nii.gz").read_bytes() == (tmp_path / "2.nii.gz").read_bytes()


def test_keys_that_follow_from_the_cases(tmp_path: Path) -> None:
    def case(name: str, **keywords: Any) -> SourceCase:
        return SourceCase(name, (), tmp_path, **keywords)

    cases = [case("a1", site="a", patient="p"), case("a2", site="a", patient="p"), case("b1", site="b", patient="q")]
    assert case_keys(cases, tmp_path) == {
        "numTraining": 3,
        "sites": {"a": ("a1", "a2"), "b": ("b1",)},
        "patients": {"a1": "p", "a2": "p"},
    }
    assert "sites" not in case_keys([*cases, case("x")], tmp_path)
    assert case_keys([case("t", site="a", held_out=True)], tmp_path) == {"numTraining": 0, "test_sites": {"a": ("t",)}}


def test_keys_that_are_given_stay(tmp_path: Path) -> None:
    case = make_case(tmp_path / "in", "c", (1,), {0: 0, 1: 1}, site="a")
    content = CONTENT | {"sites": {"z": ["c"]}}
    dataset = write_dataset(tmp_path / "Dataset001_X", tmp_path / "in", [case], content, overwrite=False, progress=False)
    assert dataset.sites == {"z": ("c",)}
    assert json.loads((dataset.folder / "dataset.json").read_text())["numTraining"] == 1


@given(st.sets(st.integers(0, 200), min_size=1))
def test_numbered_sites_sort_as_their_numbers(numbers: set[int]) -> None:
    names = site_names(str(number) for number in numbers)
    assert [names[str(number)] for number in sorted(numbers)] == sorted(names.values())
    assert len(set(names.values())) == len(numbers)


def test_sites_with_names_keep_them() -> None:
    assert site_names(["Guys", "7", "01"]) == {"Guys": "Guys", "7": "site_7", "01": "site_1"}


def test_tables(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffsite , case\n1, a\n2,b\n", encoding="utf-8")
    assert read_table(path, [("x",), ("case", "site")], "") == [{"case": "a", "site": "1"}, {"case": "b", "site": "2"}]
    for text, words in (
        ("site,case\n", "0 rows"),
        ("", "columns none"),
        ("sites,case\n1,a\n", "columns sites, case"),
        ("site,case\n1,a\n2,a\n", "more than one row for 1: a"),
        ("site,case\n,a\n2,b\n", "1 rows with an empty field"),
    ):
        path.write_text(text)
        with pytest.raises(FedsamError) as caught:
            read_table(path, [("case", "site")], "columns case, site")
        assert words in str(caught.value)
    path.write_bytes(b"\xff\xfe\x00")
    for broken in (path, tmp_path / "gone.csv", tmp_path):
        with pytest.raises(FedsamError, match="a table cannot be read"):
            read_table(broken, [("case", "site")], "")


def test_the_root_is_found_inside_its_wrapping(tmp_path: Path) -> None:
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "c").mkdir(parents=True)

    def fits(folder: Path) -> bool:
        return (folder / "c").is_dir()

    assert find_root(tmp_path, fits) == tmp_path / "a" / "b"
    (tmp_path / "a" / "d" / "c").mkdir(parents=True)
    assert find_root(tmp_path, fits) == tmp_path  # two would do: neither is taken
    with pytest.raises(FedsamError, match="the folder to convert is missing"):
        find_root(tmp_path / "gone", fits)


def test_stems() -> None:
    names = ("a.nii.gz", "a.nii", "A.NII.GZ", "a.txt", "a.gz")
    assert [stem_of(Path(name)) for name in names] == ["a", "a", "A", None, None]
