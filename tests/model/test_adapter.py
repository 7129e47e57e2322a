"""Medical SAM Adapter: what it computes, where it sits, that it starts as nothing."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fedsam_pipeline.model.adapter import Adapter, inject_adapters
from fedsam_pipeline.model.build import build_base
from fedsam_pipeline.model.recompute import set_recompute
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.specs.recipe import AdapterRecipe
from tests.model.tiny_models import IMAGE_SIZE, SMALL_VIT, TINY_VIT, register_small_vit

RECIPE = AdapterRecipe(ratio=0.25, mlp_scale=0.5)
BASES = (TINY_VIT, SMALL_VIT)


@pytest.fixture(autouse=True)
def _small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)


def adapted(base: str, *, trained: bool) -> tuple[PromptFreeSam, tuple[str, ...]]:
    model = build_base(base_model_spec(base), num_classes=3, image_size=IMAGE_SIZE[base], weights=None)
    names = inject_adapters(model, RECIPE, seed=0)
    if trained:
        generator = torch.Generator().manual_seed(3)
        for module in model.modules():
            if isinstance(module, Adapter):
                module.up.weight.data.copy_(torch.randn(module.up.weight.shape, generator=generator))
                module.up.bias.data.copy_(torch.randn(module.up.bias.shape, generator=generator))
    return model, names


def test_a_bottleneck_computes_its_formula_and_starts_at_zero() -> None:
    adapter = Adapter(8, 2, 0.5, torch.Generator().manual_seed(0))
    x = torch.randn(3, 5, 8)
    assert not adapter(x).any()
    assert adapter.down.weight.any() and adapter.down.weight.abs().max() <= 8**-0.5
    nn.init.normal_(adapter.up.weight)
    nn.init.normal_(adapter.up.bias)
    hidden = functional.gelu(x @ adapter.down.weight.T + adapter.down.bias)
    torch.testing.assert_close(adapter(x), 0.5 * (hidden @ adapter.up.weight.T + adapter.up.bias))


@pytest.mark.parametrize(("base", "blocks", "widths"), [(TINY_VIT, 3, {16}), (SMALL_VIT, 4, {16})])
def test_every_attention_block_has_two_of_a_quarter_of_its_width(base: str, blocks: int, widths: set[int]) -> None:
    model, names = adapted(base, trained=False)
    adapters = {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}
    assert sorted(adapters) == sorted(f"{name}.adapter" for name in names)
    assert sum(name.endswith(".attn") for name in names) == sum(name.endswith(".mlp") for name in names) == blocks
    assert {module.down.in_features for module in adapters.values()} == widths
    assert all(module.down.out_features * 4 == module.down.in_features for module in adapters.values())
    assert {module.scale for name, module in adapters.items() if ".mlp." in name} == {0.5}
    assert {module.scale for name, module in adapters.items() if ".attn." in name} == {1.0}


@pytest.mark.parametrize("base", BASES)
def test_the_base_models_names_and_values_stay(base: str) -> None:
    plain = build_base(base_model_spec(base), num_classes=3, image_size=IMAGE_SIZE[base], weights=None).state_dict()
    changed = adapted(base, trained=False)[0].state_dict()
    assert {name for name in changed if ".adapter." not in name} == plain.keys()
    assert all(torch.equal(changed[name], tensor) for name, tensor in plain.items())


def test_a_vit_block_adds_them_after_the_attention_and_beside_the_mlp() -> None:
    """The published block, written out, on a block with global attention."""
    model, _ = adapted(SMALL_VIT, trained=True)
    block = model.image_encoder.get_submodule("blocks.1")
    plain = build_base(base_model_spec(SMALL_VIT), num_classes=3, image_size=64, weights=None).image_encoder.get_submodule("blocks.1")
    x = torch.randn(2, 4, 4, 16)
    with torch.no_grad():
        attention = plain.attn(plain.norm1(x))  # type: ignore[operator]
        mixed = x + attention + block.attn.adapter(attention)  # type: ignore[operator, union-attr]
        normalized = plain.norm2(mixed)  # type: ignore[operator]
        expected = mixed + plain.mlp(normalized) + block.mlp.adapter(normalized)  # type: ignore[operator, union-attr]
        torch.testing.assert_close(block(x), expected)


def test_a_tiny_vit_block_does_the_same_on_its_normalized_tokens() -> None:
    model, _ = adapted(TINY_VIT, trained=True)
    block = model.image_encoder.get_submodule("layers.1.blocks.0")
    plain = build_base(base_model_spec(TINY_VIT), num_classes=3, image_size=28, weights=None).image_encoder
    windows, tokens = torch.randn(2, 49, 16), torch.randn(2, 7, 7, 16)
    attention, mlp = plain.get_submodule("layers.1.blocks.0.attn"), plain.get_submodule("layers.1.blocks.0.mlp")
    with torch.no_grad():
        attended = attention(windows)
        torch.testing.assert_close(block.attn(windows), attended + block.attn.adapter(attended))  # type: ignore[operator, union-attr]
        beside = block.mlp.adapter(mlp.norm(tokens))  # type: ignore[operator, union-attr]
        torch.testing.assert_close(block.mlp(tokens), mlp(tokens) + beside)  # type: ignore[operator]


@pytest.mark.parametrize("base", BASES)
def test_gradient_checkpointing_gives_the_same_gradients(base: str) -> None:
    images = torch.randn(1, 3, IMAGE_SIZE[base], IMAGE_SIZE[base], generator=torch.Generator().manual_seed(0))
    gradients = []
    for recompute in (False, True):
        model, _ = adapted(base, trained=True)
        chosen = [parameter.requires_grad_() for name, parameter in model.named_parameters() if ".adapter." in name]
        set_recompute(model, recompute)
        model.encode(images).square().mean().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in chosen])
    for first, second in zip(*gradients, strict=True):
        assert first is not None and second is not None
        torch.testing.assert_close(first, second)
