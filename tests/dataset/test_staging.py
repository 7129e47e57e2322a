"""A dataset folder appears complete or not at all."""

from pathlib import Path

import pytest

from fedsam_pipeline.dataset.staging import new_dataset_folder, staged_folder
from fedsam_pipeline.errors import FedsamError


def test_success_and_failure(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "raw" / "new") as staging:
        (staging / "file").write_text("x")
        assert not (tmp_path / "raw" / "new").exists()
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["new"]
    with pytest.raises(RuntimeError), staged_folder(tmp_path / "raw" / "other") as staging:
        (staging / "file").write_text("x")
        raise RuntimeError
    assert [path.name for path in (tmp_path / "raw").iterdir()] == ["new"]


def test_an_existing_folder_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset001_A"
    folder.mkdir()
    (folder / "old").write_text("x")
    with pytest.raises(FedsamError, match=r"exists already(.|\n)*--overwrite"), staged_folder(folder):
        pass
    with pytest.raises(RuntimeError), staged_folder(folder, overwrite=True):
        raise RuntimeError
    assert (folder / "old").exists()
    with staged_folder(folder, overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["Dataset001_A"]


def test_a_link_is_replaced_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "Dataset001_A").symlink_to(tmp_path / "target")
    with staged_folder(tmp_path / "Dataset001_A", overwrite=True) as staging:
        (staging / "new").write_text("x")
    assert (tmp_path / "target").is_dir() and not (tmp_path / "Dataset001_A").is_symlink()


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("x")
    with pytest.raises(FedsamError, match="cannot create a folder"), staged_folder(tmp_path / "blocked" / "new"):
        pass


def test_numbers_and_names(tmp_path: Path) -> None:
    assert new_dataset_folder(tmp_path, 4, "Hippo").name == "Dataset004_Hippo"
    for number, name in ((1000, "A"), (-1, "A"), (1, "A/B"), (1, "")):
        with pytest.raises(FedsamError, match="cannot have this number or name"):
            new_dataset_folder(tmp_path, number, name)
    (tmp_path / "Dataset004_Other").mkdir()
    with pytest.raises(FedsamError, match=r"number 4 is taken(.|\n)*Dataset004_Other"):
        new_dataset_folder(tmp_path, 4, "Hippo")
