"""Validation within training: it merges LoRA, and the model that goes on training is the one that was there before."""

from pathlib import Path

import pytest
import torch

from fedsam_pipeline.flower import worker_model as of_process
from fedsam_pipeline.flower.site_worker import SiteWorker
from fedsam_pipeline.flower.worker_model import worker_model
from fedsam_pipeline.model.lora import lora_layers
from fedsam_pipeline.specs.recipe import load_recipe
from fedsam_pipeline.training import local_trainer
from tests.flower.federations import Federation, model, setups, start


def test_validation_leaves_every_weight_as_it_was_bit_for_bit(tmp_path: Path) -> None:
    (setup,) = setups(tmp_path, {"a": 2})
    tensors = start(model())
    for name, tensor in tensors.items():
        if ".lora_B_" in name:
            tensor += 0.1  # a trained adapter: merging changes the weights
    name = next(name for name in tensors if ".lora_B_" in name)
    layer, target = name.split(".lora_B_")
    rows, columns = len(tensors[name]), tensors[f"{layer}.lora_A_{target}"].shape[1]
    folded = {f"{layer}.residual_B_{target}": torch.ones(rows, 1), f"{layer}.residual_A_{target}": torch.ones(1, columns)}
    adapted, _ = worker_model(setup.model, setup.device, compiled=setup.compiled)
    adapted.load_tensors(tensors)
    before = {name: tensor.clone() for name, tensor in adapted.model.state_dict().items()}
    for residuals in ({}, folded):
        worker = SiteWorker(setup)
        worker.take(tensors, residuals)
        assert worker.evaluate(rounds_done=0)
        after = adapted.model.state_dict()
        assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
        assert not any(each.merged for each in lora_layers(adapted.model))


@pytest.mark.parametrize("recipe", ["flap_sam", "late_lora"])
def test_a_process_that_scores_first_can_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    for module in (of_process, local_trainer):  # as on a machine with units for bfloat16: frozen weights are cast, and the casts kept
        monkeypatch.setattr(module, "autocast_dtype", lambda _device: torch.bfloat16)
    first = Federation(tmp_path, recipe=load_recipe(recipe), val_every=1)
    first.run_until(2)
    of_process._models.clear()  # the processes are gone; round 2 scores what it received, then trains
    second = Federation(tmp_path, recipe=load_recipe(recipe), val_every=1)
    second.run(rounds_done=1)
    assert second.records[0].progress["round"] == 2 and second.records[0].progress["validation"]
