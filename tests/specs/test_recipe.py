"""What a recipe file says that no model is needed to refuse: every contradiction at once."""

from importlib.resources import files
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names

PUBLISHED = {
    *("fedsam", "fedmsa", "flap_sam", "samed", "lora", "decoder", "partial_decoder", "attention"),
    *("ffa_lora", "fedsa_lora", "iat", "late_lora", "late_lora_cached"),
}


def written(folder: Path, *changes: tuple[str, str], base: str = "flap_sam") -> str:
    """A user's file: a recipe of the package with some text replaced."""
    text = (files("fedsam_pipeline.plans") / "recipes" / f"{base}.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults(path: str) -> str:
    with pytest.raises(FedsamError, match="not a valid Recipe document") as caught:
        load_recipe(path)
    return str(caught.value.found)


def test_every_published_method_is_there() -> None:
    assert set(recipe_names()) >= PUBLISHED


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_fits_both_encoders_and_cites_its_paper(name: str) -> None:
    recipe = load_recipe(name)
    assert set(recipe.encoders) == {"tiny_vit", "vit"}
    text = (files("fedsam_pipeline.plans") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
    comments = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert recipe.paper.startswith("arXiv:") and recipe.paper in comments


@pytest.mark.parametrize("name", recipe_names())
def test_every_value_that_decides_training_is_commented(name: str) -> None:
    lines = (files("fedsam_pipeline.plans") / "recipes" / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    for key in ("rank", "scale", "ratio", "mlp_scale", "encoder_share", "dice_weight", "learning_rate", "weight_decay", "weighting"):
        assert not [line for line in lines if line.startswith(f"{key} = ") and "#" not in line]


def test_patterns_of_a_table_that_is_not_there(tmp_path: Path) -> None:
    text = faults(written(tmp_path, ('federated = ["*"]', 'federated = ["*.adapter.*", "*.lora_B_*"]')))
    assert text == "parameters.federated: *.adapter.* matches nothing, because there is no table [adapter]"
    path = written(tmp_path, ('trained = ["mask_decoder.*"]', 'trained = ["*.lora_A_*", "*.lora_B_q"]'), base="decoder")
    text = faults(path)
    assert "parameters.trained: *.lora_A_* matches nothing, because there is no table [lora]" in text
    assert "parameters.trained: *.lora_B_q matches nothing" in text


def test_contradictions_and_bad_values_are_listed_together(tmp_path: Path) -> None:
    text = faults(
        written(
            tmp_path,
            ('targets = ["q", "v"]', 'targets = ["q", "v", "q"]\nencoder_share = 0.0'),
            ("dice_weight = 1.0", "dice_weight = 0.0"),
            ("cross_entropy_weight = 1.0", "cross_entropy_weight = 0.0"),
            ('weighting = "size"', 'weighting = "mood"'),
        )
    )
    for fault in ("lora.encoder_share: ", "loss.dice_weight: it and cross_entropy_weight are 0", "aggregation.weighting: "):
        assert fault in text
    text = faults(written(tmp_path, ('targets = ["q", "v"]', 'targets = ["q", "v", "q"]')))
    assert text == "lora.targets: q more than once"


@pytest.mark.parametrize("key", ["trained", "federated"])
def test_training_or_sending_nothing_is_refused(key: str, tmp_path: Path) -> None:
    old = {"trained": 'trained = ["*"]', "federated": 'federated = ["*"]'}[key]
    text = faults(written(tmp_path, (old, f"{key} = []"), base="fedsam"))
    assert text.startswith(f"parameters.{key}: ")


@pytest.mark.parametrize(("old", "key"), [("ratio = 0.25", "ratio"), ("mlp_scale = 0.5", "mlp_scale")])
def test_an_adapter_needs_a_width_and_a_scale_above_zero(old: str, key: str, tmp_path: Path) -> None:
    assert faults(written(tmp_path, (old, f"{key} = 0.0"), base="fedmsa")).startswith(f"adapter.{key}: ")
