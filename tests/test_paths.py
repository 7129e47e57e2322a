"""Data folders, and how ``-d`` finds a dataset."""

from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.paths import choose_dataset, data_folders, dataset_id, list_datasets

VARIABLES = ("fedsam_raw", "fedsam_preprocessed", "fedsam_results")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


def make(root: Path, *names: str, marker: str = "dataset.json") -> None:
    for name in names:
        path = root / name / marker
        path.parent.mkdir(parents=True)
        path.write_text("{}")


def choose(root: Path, identifier: str | int | None) -> Path:
    return choose_dataset(root, identifier, stage="raw", fix="make one")


def test_unset_variables_mean_folders_here_and_a_notice() -> None:
    folders = data_folders()
    assert (folders.raw, folders.preprocessed, folders.results) == tuple(
        Path("fedsam_data") / name for name in ("raw", "preprocessed", "results")
    )
    notice = folders.notice()
    assert notice is not None
    assert all(variable in notice for variable in VARIABLES)
    assert "fedsam_data" in notice


def test_set_variables_are_used_and_only_the_others_are_mentioned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("fedsam_raw", str(tmp_path / "mine"))
    monkeypatch.setenv("fedsam_results", "")  # as good as unset
    folders = data_folders()
    assert folders.raw == tmp_path / "mine"
    assert folders.defaulted == ("fedsam_preprocessed", "fedsam_results")
    assert "fedsam_raw" not in str(folders.notice())


def test_no_notice_when_everything_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.setenv(variable, "somewhere")
    assert data_folders().notice() is None


def test_a_datasets_number() -> None:
    assert dataset_id("Dataset004_Hippocampus") == 4
    for name in ("Dataset4_Hippocampus", "Task004_Hippocampus", "Dataset004", "Dataset004_", "Dataset004_a b", "Dataset004_a\n"):
        with pytest.raises(FedsamError, match=r"unusual name[\s\S]*DatasetXXX_Name"):
            dataset_id(name)


def test_only_folders_of_that_stage_count(tmp_path: Path) -> None:
    make(tmp_path, "Dataset002_B", "Dataset001_A", "notes")
    (tmp_path / "Dataset003_Empty").mkdir()
    (tmp_path / "Dataset004_File").write_text("")
    assert [folder.name for folder in list_datasets(tmp_path, "dataset.json")] == ["Dataset001_A", "Dataset002_B"]
    assert list_datasets(tmp_path / "missing", "dataset.json") == []


def test_the_only_dataset_is_chosen_without_a_name(tmp_path: Path) -> None:
    make(tmp_path, "Dataset007_Only")
    assert choose(tmp_path, None).name == "Dataset007_Only"


def test_none_there(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match=r"there is no raw dataset[\s\S]*make one"):
        choose(tmp_path / "raw", None)


def test_several_and_no_name_are_listed(tmp_path: Path) -> None:
    make(tmp_path, "Dataset002_B", "Dataset001_A")
    with pytest.raises(FedsamError, match=r"several raw datasets and no -d[\s\S]*Dataset001_A, Dataset002_B[\s\S]*add -d 1"):
        choose(tmp_path, None)


@pytest.mark.parametrize("identifier", [2, "2", "002", "Dataset002_B"])
def test_a_dataset_by_number_or_name(tmp_path: Path, identifier: str | int) -> None:
    make(tmp_path, "Dataset001_A", "Dataset002_B")
    assert choose(tmp_path, identifier).name == "Dataset002_B"


@pytest.mark.parametrize("identifier", [3, "003", "Dataset002_C", "B", "-2", "²"])
def test_a_missing_dataset_lists_those_that_are_there(tmp_path: Path, identifier: str | int) -> None:
    make(tmp_path, "Dataset001_A", "Dataset002_B")
    with pytest.raises(FedsamError, match=rf"raw dataset {identifier} is missing[\s\S]*Dataset001_A, Dataset002_B[\s\S]*make one"):
        choose(tmp_path, identifier)


def test_two_with_one_number_need_the_full_name(tmp_path: Path) -> None:
    make(tmp_path, "Dataset001_A", "Dataset001_B")
    with pytest.raises(FedsamError, match=r"several raw datasets carry the number 1[\s\S]*Dataset001_A, Dataset001_B"):
        choose(tmp_path, 1)
    assert choose(tmp_path, "Dataset001_B").name == "Dataset001_B"


def test_the_marker_may_be_a_pattern(tmp_path: Path) -> None:
    make(tmp_path, "Dataset001_A", marker="run/fold_0/bundle.json")
    make(tmp_path, "Dataset002_B")
    assert choose_dataset(tmp_path, None, marker="*/fold_*/bundle.json", stage="trained", fix="train").name == "Dataset001_A"
