"""LoRA: zero at the start, merge and unmerge, fused rows of both encoders."""

import re

import pytest
import torch
from torch import nn

from fedsam_pipeline.model.injection import fused_rows, inject_lora, lora_faults
from fedsam_pipeline.model.lora import LoRALinear, lora_layers, merge_lora, merged_lora, unmerge_lora
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.tiny_vit import WindowAttention
from fedsam_pipeline.specs.recipe import LoRARecipe


def layer(trained: bool) -> LoRALinear:
    torch.manual_seed(0)
    linear = nn.Linear(6, 12)
    targets = {"q": torch.arange(0, 4), "v": torch.arange(8, 12)}
    made = LoRALinear.from_linear(linear, rank=2, alpha=4.0, targets=targets, generator=torch.Generator().manual_seed(1))
    if trained:
        for name in ("q", "v"):
            nn.init.normal_(made.get_parameter(f"lora_B_{name}"))
    return made


def test_a_fresh_layer_is_the_base_layer() -> None:
    made, x = layer(trained=False), torch.randn(5, 6)
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))
    assert made.get_parameter("lora_A_q").abs().sum() > 0


def test_only_the_targets_rows_change() -> None:
    made, x = layer(trained=True), torch.randn(5, 6)
    change = made(x) - nn.functional.linear(x, made.weight, made.bias)
    assert torch.equal(change[:, 4:8], torch.zeros(5, 4))
    expected = 2.0 * x @ made.get_parameter("lora_A_v").T @ made.get_parameter("lora_B_v").T
    torch.testing.assert_close(change[:, 8:], expected, rtol=1e-4, atol=1e-6)


def test_merge_and_unmerge_agree_and_are_idempotent() -> None:
    made, x = layer(trained=True), torch.randn(5, 6)
    base, plain = made.weight.clone(), made(x)
    merge_lora(made)
    merge_lora(made)
    torch.testing.assert_close(made(x), plain, rtol=1e-5, atol=1e-5)
    unmerge_lora(made)
    unmerge_lora(made)
    torch.testing.assert_close(made.weight.data, base, rtol=1e-6, atol=1e-6)


def test_what_was_merged_for_a_while_is_bit_for_bit_the_old_layer_afterwards() -> None:
    made, x = layer(trained=True), torch.randn(5, 6)
    base, plain = made.weight.detach().clone(), made(x)
    with pytest.raises(RuntimeError, match="half-way"), merged_lora(made):
        assert made.merged
        torch.testing.assert_close(made(x), plain, rtol=1e-5, atol=1e-5)
        raise RuntimeError("half-way")
    assert not made.merged and torch.equal(made.weight, base) and torch.equal(made(x), plain)
    merge_lora(made)
    merged = made.weight.detach().clone()
    with merged_lora(made):
        assert torch.equal(made.weight, merged)
    assert made.merged and torch.equal(made.weight, merged)


def test_under_autocast_it_is_no_further_from_float32_than_three_products_and_a_sum() -> None:
    torch.manual_seed(2)
    linear = nn.Linear(64, 96)
    made = LoRALinear.from_linear(
        linear, rank=8, alpha=16.0, targets={"q": torch.arange(96)}, generator=torch.Generator().manual_seed(1)
    ).requires_grad_(False)
    nn.init.normal_(made.get_parameter("lora_B_q"))
    x = torch.randn(3, 50, 64)
    down, up = made.get_parameter("lora_A_q"), made.get_parameter("lora_B_q")
    exact = made(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = made(x)
        plain = nn.functional.linear(x, made.weight, made.bias) + 2.0 * nn.functional.linear(nn.functional.linear(x, down), up)
    assert found.dtype == torch.bfloat16 and found.shape == exact.shape
    assert (found - exact).norm() <= 1.2 * (plain - exact).norm() < 0.012 * exact.norm()


def test_disabled_is_the_base_layer() -> None:
    made, x = layer(trained=True), torch.randn(5, 6)
    made.enabled = False
    assert torch.equal(made(x), nn.functional.linear(x, made.weight, made.bias))


def test_rows_of_tiny_vit_are_those_its_attention_reads() -> None:
    attention = WindowAttention(dim=8, heads=2, window=2)
    rows = torch.arange(24).view(2, 3, 4)  # (heads, q/k/v, d), as WindowAttention.forward views them
    for part, target in enumerate("qkv"):
        assert fused_rows(attention, attention.qkv, target).tolist() == rows[:, part].flatten().tolist()


def test_rows_of_metas_vit_are_thirds() -> None:
    linear = nn.Linear(4, 12)
    assert fused_rows(nn.Module(), linear, "v").tolist() == [8, 9, 10, 11]


def test_injection_reaches_encoder_and_all_seven_decoder_attentions() -> None:
    model = PromptFreeSam(base_model_spec("tiny_random"), 3, 28)
    names = inject_lora(model, LoRARecipe(rank=2, scale=1.0, targets=("q", "v"), modules=("image_encoder.*", "mask_decoder.*")), 2, 0)
    assert sum(name.startswith("mask_decoder") for name in names) == 14
    assert sum(name.startswith("image_encoder") for name in names) == 3
    assert len(lora_layers(model)) == len(names)


def test_patterns_that_match_nothing_are_named_before_and_after_injection() -> None:
    model = PromptFreeSam(base_model_spec("tiny_random"), 3, 28)
    recipe = LoRARecipe(rank=2, scale=1.0, targets=("q",), modules=("nowhere.*", "image_encoder.*"))
    for _ in range(2):
        (fault,) = lora_faults(model, recipe)
        assert fault.startswith("lora.modules: nowhere.* matches none of the 10 layers")
        inject_lora(model, recipe, 2, 0)


@pytest.mark.parametrize(("share", "stages"), [(1.0, "123"), (0.5, "23"), (0.34, "3"), (0.01, "3")])
def test_a_share_of_the_encoder_is_its_last_blocks(share: float, stages: str) -> None:
    model = PromptFreeSam(base_model_spec("tiny_random"), 3, 28)
    recipe = LoRARecipe(rank=2, scale=1.0, targets=("q", "o", "mlp"), modules=("image_encoder.*",), encoder_share=share)
    names = inject_lora(model, recipe, 2, 0)
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == tuple(f"image_encoder.layers.{stage}.blocks.0.{layer}" for stage in stages for layer in layers)


def test_mlps_of_both_encoders_and_of_the_decoder_take_lora() -> None:
    recipe = LoRARecipe(rank=2, scale=1.0, targets=("mlp",), modules=("*",))
    for base, encoder, blocks in (("tiny_random", "fc", 3), ("vit_b", "lin", 12)):
        with torch.device("meta"):
            model = PromptFreeSam(base_model_spec(base), 3, 224 if base == "vit_b" else 28)
        names = inject_lora(model, recipe, 2, 0)
        assert all(
            re.fullmatch(r"image_encoder\..+\.mlp\." + encoder + "[12]|mask_decoder.transformer.layers.[01].mlp.lin[12]", n) for n in names
        )
        assert len(names) == 2 * (blocks + 2)
