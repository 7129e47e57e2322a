"""What a training step spends nothing on: gradients below what trains, gradients of frozen weights, tokens for every slice."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedsam_pipeline.model.build import AdaptedModel, build_planned
from fedsam_pipeline.model.recompute import encoder_blocks
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names
from fedsam_pipeline.training.local_trainer import LocalTrainer, RunSchedule
from fedsam_pipeline.training.slab_loader import SlabLoader
from tests.conftest import make_tiny_plans
from tests.model.tiny_models import SMALL_VIT, TINY_VIT, register_small_vit
from tests.training.stores import write_store

CASES = ["case_1", "case_2"]
SCHEDULE = RunSchedule(rounds=1, local_steps=1, peak_learning_rate=1e-3, seed=0)


@pytest.fixture(autouse=True)
def _small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)


def learner(folder: Path, base: str, recipe: str) -> tuple[LocalTrainer, AdaptedModel]:
    plans = make_tiny_plans(base_model=base, image_size=28 if base == TINY_VIT else 64)
    model = build_planned(plans, load_recipe(recipe), rank=2, weights=None)
    loader = SlabLoader(write_store(folder, CASES), CASES, plans)
    return LocalTrainer(model, loader, plans, load_recipe(recipe), torch.device("cpu")), model


@pytest.mark.parametrize(
    ("base", "recipe", "expected"),
    [
        (SMALL_VIT, "late_lora", [False, False, True, True]),
        (SMALL_VIT, "decoder", [False, False, False, False]),
        (TINY_VIT, "late_lora", [False, False, True, True]),
        (TINY_VIT, "partial_decoder", [False, False, False, False]),
        (TINY_VIT, "flap_sam", [False, True, True, True]),  # the first stage has no attention
        (SMALL_VIT, "flap_sam", [True, True, True, True]),
    ],
)
def test_no_gradient_enters_blocks_below_which_nothing_trains(tmp_path: Path, base: str, recipe: str, expected: list[bool]) -> None:
    trainer, model = learner(tmp_path, base, recipe)
    forward: list[bool] = []
    backward: list[nn.Module] = []
    blocks = encoder_blocks(model.model.image_encoder)

    def seen(block: nn.Module, _: object, output: Tensor) -> None:
        forward.append(output.requires_grad)
        if output.requires_grad:
            output.register_hook(lambda _: backward.append(block))  # type: ignore[no-untyped-call]

    for block in blocks:
        block.register_forward_hook(seen)
    trainer.train_round(SCHEDULE, round_number=1, site="a")
    assert forward == expected
    assert backward == [block for block, gradient in zip(blocks, expected, strict=True) if gradient][::-1]


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("base", [TINY_VIT, SMALL_VIT])
def test_frozen_weights_get_no_gradient_and_trained_ones_are_updated_by_the_fused_optimizer(tmp_path: Path, base: str, recipe: str) -> None:
    trainer, model = learner(tmp_path, base, recipe)
    trainer.train_round(SCHEDULE, round_number=1, site="a")
    with_gradient = {name for name, parameter in model.model.named_parameters() if parameter.grad is not None}
    assert with_gradient and with_gradient <= set(model.manifest.trained_names)
    updated = {key.partition("/")[2] for key in trainer.optimizer_state()}
    assert updated == with_gradient
    assert trainer._optimizer.defaults["fused"]


@pytest.mark.parametrize("base", [TINY_VIT, SMALL_VIT])
def test_the_decoder_sees_the_whole_batch_at_once_with_one_set_of_tokens(tmp_path: Path, base: str) -> None:
    trainer, model = learner(tmp_path, base, "flap_sam")
    calls: list[tuple[int, int]] = []
    transformer = model.model.mask_decoder.transformer
    transformer.register_forward_pre_hook(lambda _, inputs: calls.append((len(inputs[0]), len(inputs[2]))))
    trainer.train_round(SCHEDULE, round_number=1, site="a")
    assert calls == [(4, 1)]
