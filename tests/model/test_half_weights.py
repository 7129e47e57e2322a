"""Weights cast once compute the same bits as weights cast at every call, and come back as they were."""

import pytest
import torch

from fedsam_pipeline.model.build import AdaptedModel, build_adapted
from fedsam_pipeline.model.half_weights import frozen_weights_in
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names
from tests.model.tiny_models import IMAGE_SIZE, SMALL_VIT, TINY_VIT, register_small_vit


def step(adapted: AdaptedModel, images: torch.Tensor) -> list[torch.Tensor]:
    """Logits and gradients under autocast."""
    trained = [parameter for parameter in adapted.model.parameters() if parameter.requires_grad]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = adapted.model(images)
    found = torch.autograd.grad(logits.float().square().mean(), trained, allow_unused=True)
    return [logits, *(gradient for gradient in found if gradient is not None)]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("base", [TINY_VIT, SMALL_VIT])
def test_the_model_computes_the_same_bits(monkeypatch: pytest.MonkeyPatch, base: str, recipe: str) -> None:
    register_small_vit(monkeypatch)
    adapted = build_adapted(base, load_recipe(recipe), rank=2, num_classes=3, image_size=IMAGE_SIZE[base], weights=None)
    images = torch.randn(2, 3, IMAGE_SIZE[base], IMAGE_SIZE[base], generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    expected = step(adapted, images)
    with frozen_weights_in(adapted.model, torch.bfloat16, adapted.manifest.trained_names):
        found = step(adapted, images)
        inside = {name: parameter.dtype for name, parameter in adapted.model.named_parameters()}
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert all(inside[name] == torch.float32 for name in adapted.manifest.trained_names)
    assert recipe == "fedsam" or sum(dtype == torch.bfloat16 for dtype in inside.values()) > 10
    assert all(torch.equal(tensor, before[name]) and tensor.dtype == torch.float32 for name, tensor in adapted.model.state_dict().items())


def test_without_autocast_nothing_changes_and_an_error_puts_all_back() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3))
    with frozen_weights_in(layer, None, ()):
        assert layer[0].weight.dtype == torch.float32
    with pytest.raises(RuntimeError, match="stop"), frozen_weights_in(layer, torch.bfloat16, ["0.bias"]):
        assert (layer[0].weight.dtype, layer[0].bias.dtype) == (torch.bfloat16, torch.float32)
        raise RuntimeError("stop")
    assert layer[0].weight.dtype == torch.float32
