"""Recipes that a model cannot carry out: every fault is told at once."""

from typing import Any

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import build_adapted
from fedsam_pipeline.specs.manifest import Manifest
from fedsam_pipeline.specs.recipe import Recipe, load_recipe

LORA: dict[str, Any] = {"rank": "auto", "scale": 1.0, "targets": ["q", "v"], "modules": ["mask_decoder.*"]}


def resolve(**tables: Any) -> Manifest:
    """The manifest of FLAP-SAM with other tables."""
    recipe = Recipe.model_validate(load_recipe("flap_sam").model_dump() | tables)
    return build_adapted("tiny_random", recipe, rank=2, num_classes=3, image_size=28, weights=None).manifest


def faults(**tables: Any) -> list[str]:
    with pytest.raises(FedsamError, match="recipe flap_sam does not fit base model tiny_random") as caught:
        resolve(**tables)
    found = str(caught.value.found)
    return [line.strip() for line in found.splitlines()[1:]] if "\n" in found else [found]


def parameters(trained: list[str], federated: list[str]) -> dict[str, list[str]]:
    return {"trained": trained, "federated": federated}


def test_patterns_that_match_nothing() -> None:
    found = faults(
        parameters=parameters(["nowhere.*", "*.lora_*"], ["*.lora_A_*", "gone"]), lora=LORA | {"modules": ["mask_decoder.*", "x.*"]}
    )
    assert [fault.split(" matches")[0] for fault in found] == [
        "lora.modules: x.*",
        "parameters.trained: nowhere.*",
        "parameters.federated: gone",
    ]


def test_federating_what_is_not_trained_names_a_tensor() -> None:
    (fault,) = faults(parameters=parameters(["*.lora_*"], ["*.lora_A_*", "mask_decoder.mask_tokens.*"]))
    expected = "mask_decoder.mask_tokens.* matches only tensors that are not trained, such as mask_decoder.mask_tokens.weight"
    assert fault == f"parameters.federated: {expected}"


def test_a_recipe_that_trains_nothing_says_so_once_for_each_pattern() -> None:
    assert faults(lora=None, parameters=parameters(["nowhere.*", "gone"], ["*"])) == [
        "parameters.trained: nowhere.* matches no tensor",
        "parameters.trained: gone matches no tensor",
    ]


def test_patterns_of_one_encoder_count_with_it_alone() -> None:
    own = {"trained_tiny_vit": ["*.local_conv.*"], "trained_vit": ["*.rel_pos_*"]}
    names = resolve(parameters=parameters(["*.lora_*"], ["*"]) | own).trained_names
    assert any(".local_conv." in name for name in names)
    assert faults(parameters=parameters(["*.lora_*"], ["*"]) | {"trained_tiny_vit": ["*.rel_pos_*"]}) == [
        "parameters.trained_tiny_vit: *.rel_pos_* matches no tensor"
    ]


@pytest.mark.parametrize("trained", ["mask_decoder.mask_tokens.*", "*.lora_A_*"])
def test_lora_without_a_trained_b_would_change_nothing(trained: str) -> None:
    (fault,) = faults(parameters=parameters([trained], ["*"]))
    assert fault.startswith("lora: no factor B is trained")


def test_an_adapter_without_a_trained_up_projection_would_change_nothing() -> None:
    adapter = {"ratio": 0.25, "mlp_scale": 0.5}
    (fault,) = faults(lora=None, adapter=adapter, parameters=parameters(["*.adapter.down.*"], ["*"]))
    assert fault.startswith("adapter: no up projection is trained")


def test_the_error_shows_how_to_see_the_names() -> None:
    with pytest.raises(FedsamError, match=r"fedsam_recipes -m tiny_random -r fedsam --tensors"):
        resolve(parameters=parameters(["nowhere.*", "*.lora_*"], ["*"]))


def test_a_rate_factor_must_name_something_that_trains() -> None:
    optimizer = load_recipe("flap_sam").optimizer.to_dict() | {"rate_factors": {"nowhere.*": 0.1, "image_encoder.*.bias": 0.1, "*": 2.0}}
    assert sorted(faults(optimizer=optimizer)) == [
        "optimizer.rate_factors: image_encoder.*.bias matches no trained tensor",
        "optimizer.rate_factors: nowhere.* matches no trained tensor",
    ]


def test_hyper_networks_take_lora_too() -> None:
    manifest = resolve(lora=LORA | {"targets": ["q", "hyper"]}, parameters=parameters(["*.lora_*"], ["*"]))
    hyper = [entry for entry in manifest.tensors if "output_hypernetworks_mlps" in entry.name]
    assert [entry.name.split("mlps.")[1] for entry in hyper[:2]] == ["0.layers.0.lora_A_hyper", "0.layers.0.lora_B_hyper"]
    assert len(hyper) == 3 * 3 * 2
    assert sum(".q_proj." in entry.name for entry in manifest.tensors) == 7 * 2
