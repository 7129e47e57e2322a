"""Our ViT against ``segment_anything``'s untouched encoder: outputs and gradients, at many shapes, with all that recipes put into it."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedsam_pipeline.model import attention, vit
from fedsam_pipeline.model.adapter import Adapter, inject_adapters
from fedsam_pipeline.model.injection import inject_lora
from fedsam_pipeline.model.lora import lora_layers
from fedsam_pipeline.model.recompute import set_recompute
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.sam import PromptFreeSam
from fedsam_pipeline.model.vit import fast_vit, published_vit
from fedsam_pipeline.specs.base_model import BaseModelSpec, EncoderShape
from fedsam_pipeline.specs.recipe import AdapterRecipe, LoRARecipe
from tests.model.tiny_models import SMALL_VIT, register_small_vit

FLOAT32_TOLERANCE = 1e-4
"""relative to the largest entry"""
BFLOAT16_TOLERANCE = 3e-2
"""of both encoders against float32; ours is held to the published one's own error as well"""


def spec_of(dim: int, heads: int, window: int, depth: int = 2) -> BaseModelSpec:
    """The last block sees the whole image, the others windows."""
    shape = EncoderShape(embed_dims=(dim,), depths=(depth,), heads=(heads,), windows=(window,), global_attention=(depth - 1,))
    return base_model_spec("vit_b").model_copy(update={"encoder_shape": shape})


def pair(spec: BaseModelSpec, side: int) -> tuple[nn.Module, nn.Module]:
    """The published encoder and ours with the same parameters, none of them zero; ``side`` in tokens."""
    torch.manual_seed(side)
    plain = published_vit(spec, side * 16).eval()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return plain, fast_vit(copy.deepcopy(plain))


def run(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Output and every gradient: of the images, and of the parameters that train."""
    encoder.zero_grad()
    images = images.clone().requires_grad_()
    output = encoder(images)
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    found = {name: parameter.grad for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert images.grad is not None
    return {"output": output.detach(), "images": images.grad, **found}


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = FLOAT32_TOLERANCE) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape and found[name].dtype == tensor.dtype
        assert error(found[name], tensor) < tolerance, name


@contextmanager
def scores_at_once(count: int) -> Iterator[None]:
    """All attention in parts of this size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "SMALL_WINDOW", 0)
        patch.setattr(attention, "SCORES_AT_ONCE", count)
        yield


@settings(max_examples=12, deadline=None)
@given(
    side=st.integers(2, 9),
    window=st.integers(2, 5),
    heads=st.sampled_from([1, 2, 3]),
    batch=st.integers(1, 3),
    scores=st.sampled_from([0, 7, 300, 1 << 20]),
)
def test_outputs_and_all_gradients_are_those_of_the_published_encoder(side: int, window: int, heads: int, batch: int, scores: int) -> None:
    plain, ours = pair(spec_of(4 * heads, heads, window), side)
    images = torch.randn(batch, 3, side * 16, side * 16)
    with scores_at_once(scores) if scores else nullcontext():
        assert_same(run(ours, images), run(plain, images))


def test_names_order_and_values_of_the_parameters_stay() -> None:
    plain, ours = pair(spec_of(8, 2, 2), 4)
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in ours.named_parameters()]
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ours.load_state_dict(plain.state_dict(), strict=True)


def test_bfloat16_is_no_further_from_float32_than_the_published_encoder() -> None:
    plain, ours = pair(spec_of(32, 4, 7), 14)
    images = torch.randn(2, 3, 224, 224)
    exact = run(plain, images)
    with torch.autocast("cpu", torch.bfloat16):
        theirs, found = run(plain, images), run(ours, images)
    for name in ("output", "images", "blocks.0.attn.rel_pos_h", "blocks.1.attn.qkv.weight"):
        assert error(found[name].float(), exact[name]) < max(BFLOAT16_TOLERANCE, 1.5 * error(theirs[name].float(), exact[name])), name
    assert error(found["output"].float(), exact["output"]) < BFLOAT16_TOLERANCE


def test_position_tables_that_a_step_has_changed_are_used() -> None:
    plain, ours = pair(spec_of(8, 2, 2), 4)
    images = torch.randn(1, 3, 64, 64)
    for encoder in (plain, ours):
        optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-3)
        encoder(images).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert error(ours(images), plain(images)) < FLOAT32_TOLERANCE


def test_no_scores_of_large_windows_are_kept_for_the_backward_pass() -> None:
    _, ours = pair(spec_of(8, 8, 2), 12)
    own = {parameter.data_ptr() for parameter in ours.parameters()}
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept.append(tensor.numel())
        return tensor

    with scores_at_once(1 << 21), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ours(torch.randn(1, 3, 192, 192))
    assert 0 < max(kept) <= 3 * 192 * 192 < 8 * 144 * 144  # the images are the largest; scores of eight heads would be larger


@pytest.mark.parametrize(("side", "window"), [(4, 7), (7, 7), (9, 7), (16, 14)])
def test_tokens_of_the_padding_do_not_ask(monkeypatch: pytest.MonkeyPatch, side: int, window: int) -> None:
    asked: list[int] = []

    def watched(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        asked.append(query.shape[0] * query.shape[2])
        assert key.shape[2] in (window**2, side**2)
        return attention.attend(query, key, value)

    monkeypatch.setattr(vit, "attend", watched)
    plain, ours = pair(spec_of(8, 2, window), side)
    images = torch.randn(2, 3, side * 16, side * 16)
    assert_same(run(ours, images), run(plain, images))
    assert sum(asked) == 2 * 2 * side**2  # two images, two blocks


def small_model(monkeypatch: pytest.MonkeyPatch, *, published: bool) -> PromptFreeSam:
    register_small_vit(monkeypatch)
    torch.manual_seed(0)
    spec = base_model_spec(SMALL_VIT)
    model = PromptFreeSam(spec, 3, 64)
    if published:
        state = model.image_encoder.state_dict()
        model.image_encoder = published_vit(spec, 64)
        model.image_encoder.load_state_dict(state, strict=True)
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("recompute", [False, True])
def test_with_lora_both_encoders_train_alike(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    found = []
    for published in (True, False):
        model = small_model(monkeypatch, published=published)
        recipe = LoRARecipe(rank=2, scale=1.0, targets=("q", "v", "o", "mlp"), modules=("image_encoder.*",))
        assert len(inject_lora(model, recipe, 2, 0)) == 16
        torch.manual_seed(1)
        for layer in lora_layers(model):
            for target in layer.target_names:
                nn.init.normal_(layer.get_parameter(f"lora_B_{target}").requires_grad_())
        set_recompute(model, recompute)
        found.append(run(model.image_encoder, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))))
    assert sum(".lora_B_" in name for name in found[0]) == 20
    assert_same(found[1], found[0])


def test_with_medical_sam_adapters_both_encoders_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for published in (True, False):
        model = small_model(monkeypatch, published=published)
        inject_adapters(model, AdapterRecipe(ratio=0.25, mlp_scale=0.5), 0)
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, Adapter):
                module.requires_grad_()
                nn.init.normal_(module.up.weight)
        found.append(run(model.image_encoder, torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))))
    assert sum(".adapter." in name for name in found[0]) == 32
    assert_same(found[1], found[0])
