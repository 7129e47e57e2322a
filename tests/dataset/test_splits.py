"""Folds: complete, disjoint, balanced by site, grouped by patient, never without training cases."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.dataset.splits import load_splits, make_splits
from fedsam_pipeline.errors import FedsamError

site_sizes = st.lists(st.integers(1, 13), min_size=1, max_size=6)


def named(sizes: list[int]) -> dict[str, list[str]]:
    return {f"s{site}": [f"c{site}_{number:02d}" for number in range(size)] for site, size in enumerate(sizes)}


@settings(max_examples=100, deadline=None)
@given(sizes=site_sizes, seed=st.integers(0, 5))
def test_without_patients_sites_are_balanced(sizes: list[int], seed: int) -> None:
    sites = named(sizes)
    everything = sorted(case for cases in sites.values() for case in cases)
    splits = make_splits(sites, {}, seed=seed)
    assert len(splits) == 5
    for split in splits:
        assert split["train"] == sorted(split["train"]) and split["val"] == sorted(split["val"])
        assert sorted(split["train"] + split["val"]) == everything
    validated = Counter(case for split in splits for case in split["val"])
    for cases in sites.values():
        assert all(set(cases) & set(split["train"]) for split in splits)
        assert all(validated[case] == (1 if len(cases) > 1 else 0) for case in cases)
        counts = [len(set(cases) & set(split["val"])) for split in splits]
        assert max(counts) - min(counts) <= 1


@settings(max_examples=150, deadline=None)
@given(sizes=site_sizes, data=st.data())
def test_patients_stay_together_and_train_is_never_empty(sizes: list[int], data: st.DataObject) -> None:
    sites = named(sizes)
    everything = [case for cases in sites.values() for case in cases]
    patients = {case: patient for case in everything if (patient := data.draw(st.sampled_from(["p", "q", "r", "s", None]))) is not None}
    splits = make_splits(sites, patients)
    for split in splits:
        train, val = set(split["train"]), set(split["val"])
        assert train | val == set(everything) and not train & val
        assert not {patients[case] for case in train if case in patients} & {patients[case] for case in val if case in patients}
        assert all(train & set(cases) for cases in sites.values())
    assert max(Counter(case for split in splits for case in split["val"]).values(), default=1) == 1


def test_the_only_patient_of_a_site_trains_in_all_folds() -> None:
    splits = make_splits({"a": ["a1"], "b": ["b1", "b2"], "c": [f"c{number}" for number in range(5)]}, {"b1": "p", "b2": "p"})
    assert all({"a1", "b1", "b2"} <= set(split["train"]) for split in splits)
    assert sorted(case for split in splits for case in split["val"]) == [f"c{number}" for number in range(5)]


def test_splits_never_change_by_themselves() -> None:
    sites = {"b": ["b3", "b1", "b2"], "a": ["a1", "a2", "a3", "a4", "a5", "a6"]}
    splits = make_splits(sites, {})
    assert splits == make_splits({"a": sorted(sites["a"], reverse=True), "b": sorted(sites["b"])}, {})
    assert splits != make_splits(sites, {}, seed=1)
    assert [split["val"] for split in splits] == [["a1", "a4"], ["a2", "b1"], ["a5", "b3"], ["a3", "b2"], ["a6"]]


def test_one_fold_is_no_cross_validation() -> None:
    with pytest.raises(ValueError, match="at least 2 folds"):
        make_splits({"a": ["a1", "a2"]}, {}, folds=1)


def test_written_splits_load(tmp_path: Path) -> None:
    sites = named([4, 7])
    splits = make_splits(sites, {})
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(splits))
    assert load_splits(path, [case for cases in sites.values() for case in cases]) == splits


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "have another shape"),
        ({"train": ["a"], "val": ["b"]}, "have another shape"),
        ([{"train": ["a"]}], "have another shape"),
        ([{"train": ["a", "z"], "val": ["b"]}], "fold 0: z is not in the dataset"),
        ([{"train": ["a", "b"], "val": ["b"]}], "fold 0: b is both in train and val"),
        ([{"train": ["a"], "val": ["b"]}, {"train": [], "val": ["a", "b"]}], "fold 1: train is empty"),
        ([{"train": ["a", "a"], "val": ["b"]}], "fold 0: a case is listed twice"),
        ([{"train": ["a"], "val": []}], "b is in no fold"),
        ([{"train": [f"z{number}" for number in range(9)], "val": ["a", "b"]}], "and 4 more"),
    ],
)
def test_splits_that_do_not_fit(tmp_path: Path, content: Any, words: str) -> None:
    path = tmp_path / "splits_final.json"
    path.write_text(json.dumps(content))
    with pytest.raises(FedsamError, match=words) as caught:
        load_splits(path, ["a", "b"])
    assert "mend the file, or delete it and run fedsam_plan_and_preprocess again to draw new splits" in str(caught.value)


def test_missing_splits(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="file is missing"):
        load_splits(tmp_path / "splits_final.json", ["a"])
