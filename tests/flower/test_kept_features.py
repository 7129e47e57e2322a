"""A federation on pools of slabs: features stay at their site, through an interruption, for as long as the run lasts."""

from pathlib import Path

from fedsam_pipeline.specs.recipe import load_recipe
from fedsam_pipeline.training.feature_pool import FILE_NAME
from tests.flower.federations import Federation, assert_equal

SITES = {"site_a": 2, "site_b": 1}


def kept(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(FILE_NAME))


def test_features_outlive_an_interruption_and_not_the_run(tmp_path: Path) -> None:
    recipe = load_recipe("late_lora_cached")
    whole = Federation(tmp_path / "whole", SITES, recipe).run()
    assert kept(tmp_path / "whole") == []
    first = Federation(tmp_path / "cut", SITES, recipe)
    first.run_until(2)
    assert kept(tmp_path / "cut") == [f"sites/{site}/features/{FILE_NAME}" for site in SITES]
    second = Federation(tmp_path / "cut", SITES, recipe)
    assert_equal(second.run(rounds_done=1), whole)
    assert kept(tmp_path / "cut") == []
