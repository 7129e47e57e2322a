"""A step in parts is the step in one; the probe divides it by memory."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_adapted, build_planned
from fedsam_pipeline.model.cast_linear import CastLinear
from fedsam_pipeline.model.recompute import encoder_blocks, set_recompute
from fedsam_pipeline.specs.execution import Execution
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import load_recipe
from fedsam_pipeline.training import execution as module
from fedsam_pipeline.training.execution import apply_execution, choose_execution, memory_budget, probe_image_bytes
from fedsam_pipeline.training.local_trainer import LocalTrainer, RunSchedule
from fedsam_pipeline.training.slab_loader import SlabLoader
from tests.conftest import make_tiny_plans
from tests.training.stores import write_store

CPU = torch.device("cpu")
SCHEDULE = RunSchedule(rounds=2, local_steps=2, peak_learning_rate=1e-2, seed=5)


@pytest.fixture
def adapted() -> AdaptedModel:
    return build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None)


def trained(folder: Path, plans: Plans, *, micro_batch: int | None = None, recompute: bool = False) -> dict[str, torch.Tensor]:
    model = build_planned(plans, load_recipe("flap_sam"), rank=2, weights=None)
    set_recompute(model.model, recompute)
    store = write_store(folder, ["case_0", "case_1"])
    loader = SlabLoader(store, ["case_0", "case_1"], plans)
    trainer = LocalTrainer(model, loader, plans, load_recipe("flap_sam"), CPU, micro_batch=micro_batch)
    trainer._autocast = None  # in float32, where equal means equal
    trainer.train_round(SCHEDULE, round_number=1, site="a")
    return {name: tensor.clone() for name, tensor in model.trained_tensors().items()}


@pytest.mark.parametrize(("parts", "recompute"), [(2, False), (4, True), (1, True)])
def test_a_step_in_parts_trains_the_same_model(tmp_path: Path, tiny_plans: Plans, parts: int, recompute: bool) -> None:
    whole = trained(tmp_path / "a", tiny_plans)
    batch = tiny_plans.training.effective_batch
    assert batch % parts == 0
    divided = trained(tmp_path / "b", tiny_plans, micro_batch=batch // parts, recompute=recompute)
    assert whole.keys() == divided.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-3, atol=2e-4)


def test_a_step_in_parts_keeps_prompts_and_slabs_together(tmp_path: Path) -> None:
    plans = make_tiny_plans(
        slab_depth=2,
        slice_mixing="mixer",
        encoder_inputs=[[{"channel": 0, "offset": 0}]] * 3,
        prompts={"mode": "box", "jitter_mm": 1.0, "dropout": 0.5},
        training={"effective_batch": 4},
    )
    whole, divided = trained(tmp_path / "a", plans), trained(tmp_path / "b", plans, micro_batch=2)
    untrained = build_planned(plans, load_recipe("flap_sam"), rank=2, weights=None).trained_tensors()
    for name, tensor in whole.items():
        torch.testing.assert_close(divided[name], tensor, rtol=1e-3, atol=2e-4)
    for name in ("prompt_classes.weight", "slice_mixer.up.weight"):
        assert not torch.equal(whole[name], untrained[name])


def test_slabs_that_mix_are_never_divided() -> None:
    model = build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None, mixer_depth=4).model
    image = probe_image_bytes(model, CPU, None, recompute=False)
    assert choose_execution(model, 16, CPU, None, 9 * image).micro_batch == 8
    assert choose_execution(model, 16, CPU, None, 7 * image).micro_batch == 4
    less = probe_image_bytes(model, CPU, None, recompute=True)
    tight = choose_execution(model, 16, CPU, None, 4 * less)
    assert (tight.micro_batch, tight.gradient_checkpointing) == (4, True)
    with pytest.raises(FedsamError, match="for a single image"):
        choose_execution(model, 16, CPU, None, 4 * less - 1)


def test_recomputation_reaches_every_block_and_goes_away(adapted: AdaptedModel) -> None:
    model = adapted.model
    images = torch.randn(2, 3, 28, 28)
    blocks = encoder_blocks(model.image_encoder)
    assert len(blocks) == 4 and all(isinstance(block, nn.Module) for block in blocks)
    expected = model(images)
    set_recompute(model, True)
    assert all("forward" in vars(block) for block in blocks)
    torch.testing.assert_close(model(images), expected)
    set_recompute(model, False)
    assert not any("forward" in vars(block) for block in blocks)


def test_the_probe_changes_nothing_and_is_the_same_every_time(adapted: AdaptedModel) -> None:
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    state = torch.get_rng_state()
    plain = [probe_image_bytes(adapted.model, CPU, None, recompute=False) for _ in range(2)]
    less = probe_image_bytes(adapted.model, CPU, None, recompute=True)
    assert plain[0] == plain[1] > less > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.model.state_dict().items())
    assert all(parameter.grad is None for parameter in adapted.model.parameters())
    assert not adapted.model.training


def test_an_image_does_not_pay_for_what_all_share(adapted: AdaptedModel) -> None:
    fresh = probe_image_bytes(adapted.model, CPU, torch.bfloat16, recompute=False)
    casts = sum(cast.nbytes for layer in adapted.model.modules() if isinstance(layer, CastLinear) for cast in layer.kept_casts)
    assert casts > 0
    for layer in adapted.model.modules():
        if isinstance(layer, CastLinear):
            layer.requires_grad_()  # autocast casts them each time, and the backward pass keeps that
    assert probe_image_bytes(adapted.model, CPU, torch.bfloat16, recompute=False) > fresh + casts


def test_memory_divides_the_batch_and_then_costs_recomputation(adapted: AdaptedModel, tmp_path: Path) -> None:
    model = adapted.model
    image = probe_image_bytes(model, CPU, None, recompute=False)
    less = probe_image_bytes(model, CPU, None, recompute=True)
    plenty = choose_execution(model, 12, CPU, None, 100 * image)
    assert (plenty.micro_batch, plenty.gradient_checkpointing) == (12, False)
    tight = choose_execution(model, 12, CPU, None, 5 * image)
    assert (tight.micro_batch, tight.gradient_checkpointing) == (4, False)  # the largest divisor of 12 up to 5
    tighter = choose_execution(model, 12, CPU, None, (image + less) // 2)
    assert (tighter.micro_batch, tighter.gradient_checkpointing) == (1, True)
    tighter.save(tmp_path / "site_a.json")
    assert Execution.load(tmp_path / "site_a.json") == tighter
    apply_execution(model, plenty)
    with pytest.raises(FedsamError, match=r"does not fit into memory[\s\S]*-gpu_memory_target"):
        choose_execution(model, 12, CPU, None, less // 2)


def test_running_out_of_memory_falls_back_to_recomputation(adapted: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    real = module.probe_image_bytes

    def out_of_memory(*arguments: object, recompute: bool) -> int:
        if not recompute:
            raise torch.OutOfMemoryError("probe")
        return real(adapted.model, CPU, None, recompute=True)

    monkeypatch.setattr(module, "probe_image_bytes", out_of_memory)
    assert choose_execution(adapted.model, 4, CPU, None, 1 << 30).gradient_checkpointing


def test_workers_share_the_memory() -> None:
    assert memory_budget(CPU, 1 << 30, workers=4) == 1 << 28
    assert memory_budget(CPU, None) > 0
