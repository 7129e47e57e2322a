"""Compiled blocks compute the same under the same names. The backend is torch's "eager": tracing is tested, not the C++ compiler."""

import pytest
import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model import compilation
from fedsam_pipeline.model.build import AdaptedModel, build_adapted
from fedsam_pipeline.model.compilation import compile_encoder
from fedsam_pipeline.model.recompute import set_recompute
from fedsam_pipeline.specs.recipe import load_recipe
from tests.model.tiny_models import IMAGE_SIZE, SMALL_VIT, TINY_VIT, register_small_vit

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch._dynamo.reset()


def adapted(base: str, recipe: str) -> AdaptedModel:
    return build_adapted(base, load_recipe(recipe), rank=2, num_classes=2, image_size=IMAGE_SIZE[base], weights=None)


def step(own: AdaptedModel) -> dict[str, Tensor]:
    side = own.model.image_size
    own.model.zero_grad()
    logits = own.model(torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)))
    logits.square().mean().backward()
    return {"logits": logits.detach()} | {n: p.grad for n, p in own.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("base", "recipe", "recompute"), [(TINY_VIT, "flap_sam", True), (SMALL_VIT, "fedmsa", False)])
def test_outputs_gradients_and_names_stay_also_when_weights_change(base: str, recipe: str, recompute: bool) -> None:
    plain, compiled = adapted(base, recipe), adapted(base, recipe)
    set_recompute(compiled.model, recompute)
    for _ in range(2):
        compile_encoder(compiled.model, CPU)
    assert compiled.model.state_dict().keys() == plain.model.state_dict().keys()
    assert list(compiled.trained_tensors()) == list(plain.trained_tensors())
    for factor in (1.0, 1.5):
        for own in (plain, compiled):
            own.load_tensors({name: tensor * factor + (factor - 1) * 0.01 for name, tensor in own.trained_tensors().items()})
        found, expected = step(compiled), step(plain)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_a_block_with_lora_is_compiled_as_a_whole() -> None:
    own = adapted(SMALL_VIT, "flap_sam")
    block = own.model.image_encoder.get_submodule("blocks.0")
    tokens = torch.randn(1, 4, 4, own.model.image_encoder.get_parameter("pos_embed").shape[-1])
    with torch.autocast("cpu", torch.bfloat16):
        found = torch._dynamo.explain(block)(tokens)
    assert found.graph_count == 1 and found.graph_break_count == 0


def test_more_sizes_than_torch_would_compile_by_itself_stay_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        seen.append(graph)
        return graph

    monkeypatch.setattr(compilation, "BACKEND", backend)
    model = adapted(SMALL_VIT, "flap_sam").model.eval()
    compile_encoder(model, CPU)
    side, before = IMAGE_SIZE[SMALL_VIT], len(seen)
    numbers = range(1, torch._dynamo.config.recompile_limit + 4)
    with torch.no_grad():
        for number in numbers:
            model.encode(torch.zeros(number, 3, side, side))
    assert len(seen) - before >= len(numbers)


def test_a_machine_that_cannot_compile_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no compiler\nat all")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    with pytest.raises(FedsamError, match=r"cannot compile on this machine[\s\S]*leave --compile out"):
        compile_encoder(adapted(TINY_VIT, "flap_sam").model, CPU)
