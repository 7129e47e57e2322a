"""A frozen weight is cast once; whatever happens to it afterwards, the layer computes with what it is."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedsam_pipeline.model.build import build_adapted
from fedsam_pipeline.model.cast_linear import CastLinear, settle_frozen
from fedsam_pipeline.model.lora import LoRALinear, merge_lora, unmerge_lora
from fedsam_pipeline.specs.recipe import load_recipe


def frozen(bias: bool = True) -> CastLinear:
    torch.manual_seed(0)
    return CastLinear.of(nn.Linear(6, 4, bias=bias)).requires_grad_(False)


def computed(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        output: Tensor = layer(x)
    return output


def expected(layer: nn.Linear, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return functional.linear(x, layer.weight, layer.bias)


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_what_autocast_computes(bias: bool) -> None:
    layer, x = frozen(bias), torch.randn(5, 6)
    for _ in range(2):
        assert torch.equal(computed(layer, x), expected(layer, x))
    assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
    assert set(layer.state_dict()) == ({"weight", "bias"} if bias else {"weight"})


@pytest.mark.parametrize("bias_trains", [False, True])
def test_the_cast_is_made_once(bias_trains: bool) -> None:
    layer, x = frozen(), torch.randn(5, 6).bfloat16()
    layer.bias.requires_grad_(bias_trains)
    computed(layer, x)
    with torch.profiler.profile() as profile:
        computed(layer, x)
    casts = [event for event in profile.events() if event.name == "aten::_to_copy"]
    assert len(casts) == bias_trains and len(layer.kept_casts) == 2 - bias_trains  # what trains is cast at every call


def in_place(layer: CastLinear) -> None:
    with torch.no_grad():
        layer.weight.mul_(3)


def replaced(layer: CastLinear) -> None:
    layer.weight = nn.Parameter(torch.randn(4, 6), requires_grad=False)


def loaded(layer: CastLinear) -> None:
    layer.load_state_dict({"weight": torch.randn(4, 6), "bias": torch.randn(4)})


def moved(layer: CastLinear) -> None:
    layer.double().float()
    in_place(layer)


@pytest.mark.parametrize("change", [in_place, replaced, loaded, moved])
def test_a_changed_weight_is_cast_again(change: Callable[[CastLinear], None]) -> None:
    layer, x = frozen(), torch.randn(5, 6)
    before = computed(layer, x)
    change(layer)
    assert not torch.equal(computed(layer, x), before)
    assert torch.equal(computed(layer, x), expected(layer, x))


def test_a_weight_that_trains_gets_its_gradient() -> None:
    layer, x = frozen(), torch.randn(5, 6)
    computed(layer, x)
    layer.requires_grad_(True)
    computed(layer, x).float().sum().backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None and layer.bias.grad is not None


def test_a_layer_with_lora_is_cast_before_the_first_step() -> None:
    layer = LoRALinear.from_linear(
        nn.Linear(6, 4), rank=2, alpha=2.0, targets={"q": torch.arange(4)}, generator=torch.Generator().manual_seed(0)
    )
    layer.weight.requires_grad_(False)
    layer.bias.requires_grad_(False)
    settle_frozen(layer, torch.bfloat16, compiled=True)
    assert not layer.kept_casts
    settle_frozen(layer, torch.bfloat16)
    weight, bias = layer.kept_casts
    assert weight.dtype == bias.dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    computed(layer, torch.randn(5, 6))
    assert layer.kept_casts[0] is weight  # not made anew
    trains = CastLinear.of(nn.Linear(6, 4))
    settle_frozen(trains, torch.bfloat16)
    assert not trains.kept_casts and trains.weight.dtype == torch.float32


def test_merging_unmerging_and_restoring_lora_are_seen() -> None:
    torch.manual_seed(0)
    layer = LoRALinear.from_linear(
        nn.Linear(6, 4), rank=2, alpha=2.0, targets={"q": torch.arange(4)}, generator=torch.Generator().manual_seed(0)
    )
    nn.init.normal_(layer.get_parameter("lora_B_q"))
    layer.requires_grad_(False)
    x, base = torch.randn(5, 6), layer.weight.clone()
    computed(layer, x)
    merge_lora(layer)
    assert torch.equal(computed(layer, x), expected(layer, x)) and not torch.equal(layer.weight, base)
    unmerge_lora(layer)
    layer.restore(base)
    layer.enabled = False
    assert torch.equal(computed(layer, x), expected(layer, x)) and torch.equal(layer.weight, base)


def test_an_adapter_that_is_loaded_into_a_model_in_use_is_seen() -> None:
    """As in prediction with several folds: everything is frozen and in use when the next fold's tensors come."""
    used, fresh = (
        build_adapted("tiny_random", load_recipe("fedsam"), rank=2, num_classes=2, image_size=28, weights=None) for _ in range(2)
    )
    tensors = {name: tensor * 1.5 for name, tensor in used.trained_tensors().items()}
    used.model.requires_grad_(False)
    fresh.model.requires_grad_(False)
    image = torch.randn(1, 3, 28, 28)
    with torch.autocast("cpu", torch.bfloat16):
        before = used.model.encode(image)
        used.load_tensors(tensors)
        fresh.load_tensors(tensors)
        assert torch.equal(used.model.encode(image), fresh.model.encode(image))
        assert not torch.equal(used.model.encode(image), before)


@pytest.mark.parametrize("lora", [True, False])
def test_prediction_may_come_before_training(lora: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 4).requires_grad_(False)
    targets = {"q": torch.arange(2)}
    layer = LoRALinear.from_linear(plain, rank=2, alpha=2, targets=targets, generator=torch.Generator()) if lora else CastLinear.of(plain)
    with torch.inference_mode():
        computed(layer, torch.randn(5, 6))
    x = torch.randn(5, 6, requires_grad=True)
    computed(layer, x).float().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad.abs().sum() > 0


def test_weights_made_in_prediction_are_cast_each_time() -> None:
    with torch.inference_mode():
        layer = CastLinear.of(nn.Linear(6, 4)).requires_grad_(False)
        x = torch.randn(5, 6)
        for _ in range(2):
            assert torch.equal(computed(layer, x), expected(layer, x))
            layer.weight.mul_(2)
    assert not layer.kept_casts


def test_settled_weights_give_the_same_in_less_memory() -> None:
    adapted = build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=2, image_size=28, weights=None)
    image = torch.randn(1, 3, 28, 28)
    trained = {name: parameter for name, parameter in adapted.model.named_parameters() if parameter.requires_grad}

    def step() -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = adapted.model(image)
        return [logits, *torch.autograd.grad(logits.float().square().mean(), list(trained.values()), allow_unused=True)]

    before, held = step(), {name: parameter.nbytes for name, parameter in adapted.model.named_parameters()}
    settle_frozen(adapted.model, None)
    assert held == {name: parameter.nbytes for name, parameter in adapted.model.named_parameters()}
    settle_frozen(adapted.model, torch.bfloat16)
    for was, now in zip(before, step(), strict=True):
        assert (was is None and now is None) or torch.equal(was, now)
    layers = [layer for layer in adapted.model.modules() if isinstance(layer, CastLinear)]
    assert {layer.weight.dtype for layer in layers if isinstance(layer, LoRALinear)} == {torch.float32}, "LoRA is merged in full precision"
    plain = [layer for layer in layers if type(layer) is CastLinear]
    settled = [layer for layer in plain if not any(parameter.requires_grad for parameter in layer.parameters())]
    assert 0 < len(settled) < len(plain), "the hyper-networks train"
    assert all(layer.weight.dtype == (torch.bfloat16 if layer in settled else torch.float32) for layer in plain)
    after = {name: parameter.nbytes for name, parameter in adapted.model.named_parameters()}
    assert sum(held.values()) - sum(after.values()) == sum(parameter.nbytes for layer in settled for parameter in layer.parameters())


def test_what_trains_is_not_settled() -> None:
    layer = CastLinear.of(nn.Linear(6, 4))
    settle_frozen(nn.Sequential(layer), torch.bfloat16)
    assert layer.weight.dtype == torch.float32
