"""Choosing learning rates, and the methods of docs/results.md."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rates
from fedsam_pipeline.pipeline.recipes import Setting
from fedsam_pipeline.specs.comparison import load_methods
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names
from tests.pipeline.comparisons import NAME, make_planned

FOLDER = Path(rates.__file__).parent


def test_each_rate_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"fedsam_{name}", str(tmp_path / name))
    make_planned(tmp_path)

    def run(*values: str) -> list[dict[str, Any]]:
        flags = ["-r", "lora", "--steps", "1", "--keep", str(tmp_path / "rates.jsonl"), "--rates", *values]
        monkeypatch.setattr(sys, "argv", ["rates", str(tmp_path / "preprocessed" / NAME), *flags])
        assert rates.main() == 0
        return [json.loads(line) for line in (tmp_path / "rates.jsonl").read_text(encoding="utf-8").splitlines()]

    first = run("0.001", "0.01")
    assert [line["rate"] for line in first] == [0.001, 0.01]
    for line in first:
        known = [value for value in line["sites"].values() if value is not None]
        assert 0 <= line["dice"] <= 1 and line["dice"] == pytest.approx(sum(known) / len(known))
    shown = capsys.readouterr().out
    assert f"{first[0]['dice']:.4f}" in shown
    again = run("0.01", "0.1")
    assert again[:2] == first and [line["rate"] for line in again] == [0.001, 0.01, 0.1]


def test_the_methods_of_the_results_are_all_published_ones_and_the_default() -> None:
    grids = load_methods(FOLDER / "hippocampus.toml")
    named = {recipe for grid in grids for recipe in grid.recipes}
    assert named == {"fedsam", "fedmsa", "flap_sam", "samed", "lora", "decoder", "partial_decoder", "attention", "default"}
    assert named <= set(recipe_names())


@pytest.mark.parametrize("path", sorted((FOLDER / "candidates").glob("*.toml")), ids=lambda path: path.stem)
def test_candidates_can_be_trained(path: Path) -> None:
    assert load_recipe(str(path)).name == path.stem
    assert Setting("lite_medsam", 56, 2, 8).manifest(str(path)).federated_parameters > 100_000


def test_a_recipes_own_rate_does_not_matter_to_what_was_tried() -> None:
    recipe = load_recipe("fedsam")
    other = recipe.model_copy(update={"optimizer": recipe.optimizer.model_copy(update={"learning_rate": 0.5})})
    assert other.sha256() != recipe.sha256()
    assert rates.tried(other, 0.001, None).sha256() == rates.tried(recipe, 0.001, None).sha256()
    assert rates.tried(recipe, 0.001, 0.5).sha256() != rates.tried(recipe, 0.001, None).sha256()
