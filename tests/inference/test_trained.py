"""Finding the trained model that a user means."""

from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.trained import choose_run, find_folds

RECIPE = "flap_sam__plans__main"


def _trained(dataset: Path, run: str, *folds: str, done: bool = True) -> Path:
    for fold in folds:
        (dataset / RECIPE / run / f"fold_{fold}").mkdir(parents=True)
        if done:
            (dataset / RECIPE / run / f"fold_{fold}" / "bundle.json").write_text("{}")
    return dataset / RECIPE / run


def test_the_only_run_is_chosen_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    run = _trained(tmp_path, "local__fedavg__seed0", "0")
    _trained(tmp_path, "federated__fedavg__seed0", "0", done=False)
    assert choose_run(tmp_path) == run


def test_the_federated_run_is_chosen_among_baselines(tmp_path: Path) -> None:
    _trained(tmp_path, "centralized__fedavg__seed0", "0")
    _trained(tmp_path, "local__fedavg__seed0", "0")
    run = _trained(tmp_path, "federated__fedavg__seed0", "0")
    assert choose_run(tmp_path) == run


def test_several_runs_are_listed(tmp_path: Path) -> None:
    for seed in (0, 1):
        _trained(tmp_path, f"federated__fedavg__seed{seed}", "0")
    with pytest.raises(FedsamError, match="2 trained models and no -m says which") as caught:
        choose_run(tmp_path)
    assert f"{RECIPE}/federated__fedavg__seed0, {RECIPE}/federated__fedavg__seed1" in str(caught.value)
    assert "add -m" in str(caught.value)


def test_nothing_trained_says_how_to_train(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="no trained model") as caught:
        choose_run(tmp_path)
    assert "fedsam_train_federated" in str(caught.value)


def test_all_trained_folds_are_the_default(tmp_path: Path) -> None:
    run = _trained(tmp_path, "federated__fedavg__seed0", "0", "2", "10", "all")
    assert [path.name for path in find_folds(run)] == ["fold_0", "fold_2", "fold_10"]
    assert [path.name for path in find_folds(run, ["all"])] == ["fold_all"]
    assert [path.name for path in find_folds(run, ["2", "0", "2"])] == ["fold_2", "fold_0"]
    assert find_folds(run / "fold_2") == [run / "fold_2"]
    only = _trained(tmp_path, "federated__fedavg__seed1", "all")
    assert [path.name for path in find_folds(only)] == ["fold_all"]


def test_folds_that_are_not_there_are_named(tmp_path: Path) -> None:
    run = _trained(tmp_path, "federated__fedavg__seed0", "0", "1")
    with pytest.raises(FedsamError, match="fold 3 is not trained") as caught:
        find_folds(run, ["0", "3"])
    assert "trained: 0, 1" in str(caught.value)
    with pytest.raises(FedsamError, match="the model folder is missing"):
        find_folds(tmp_path / "nowhere")
    with pytest.raises(FedsamError, match="holds no trained fold") as caught:
        find_folds(tmp_path)
    assert RECIPE in str(caught.value)
