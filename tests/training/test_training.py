"""Local training: determinism, schedule, moments, slabs."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_adapted, build_planned
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import Recipe, ScheduleRecipe, load_recipe
from fedsam_pipeline.training.augment import SlabAugmentation
from fedsam_pipeline.training.local_trainer import LocalTrainer, RunSchedule, TrainingDiverged
from fedsam_pipeline.training.loss import segmentation_loss
from fedsam_pipeline.training.randomness import sample_generator
from fedsam_pipeline.training.schedule import learning_rate
from fedsam_pipeline.training.slab_loader import SlabLoader
from tests.conftest import make_tiny_plans
from tests.training.stores import write_store

CASES = ["case_1", "case_2", "case_3"]


def adapted() -> AdaptedModel:
    return build_adapted("tiny_random", load_recipe("flap_sam"), rank=2, num_classes=3, image_size=28, weights=None)


def trainer(folder: Path, plans: Plans, model: AdaptedModel, recipe: Recipe | None = None) -> LocalTrainer:
    loader = SlabLoader(write_store(folder, CASES), CASES, plans)
    return LocalTrainer(model, loader, plans, recipe or load_recipe("flap_sam"), torch.device("cpu"))


def snapshot(model: AdaptedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.trained_tensors().items()}


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    plans = make_tiny_plans(training={"effective_batch": 8})
    schedule = RunSchedule(rounds=4, local_steps=30, peak_learning_rate=5e-3, seed=0)
    learner = trainer(tmp_path, plans, adapted())
    losses = [learner.train_round(schedule, round_number=i, site="a").loss for i in (1, 2, 3, 4)]
    assert losses[-1] < 0.85 * losses[0]


def test_rounds_interrupted_and_resumed_equal_rounds_in_one_go(tmp_path: Path, tiny_plans: Plans) -> None:
    schedule = RunSchedule(rounds=2, local_steps=3, peak_learning_rate=1e-3, seed=7)
    whole = adapted()
    learner = trainer(tmp_path, tiny_plans, whole)
    for i in (1, 2):
        learner.train_round(schedule, round_number=i, site="a")

    first = adapted()
    before = trainer(tmp_path, tiny_plans, first)
    before.train_round(schedule, round_number=1, site="a")
    state, tensors = before.optimizer_state(), snapshot(first)
    second = adapted()
    second.load_tensors(tensors)
    after = trainer(tmp_path, tiny_plans, second)
    after.load_optimizer_state(state)
    after.train_round(schedule, round_number=2, site="a")
    expected, found = snapshot(whole), snapshot(second)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_frozen_tensors_never_change(tmp_path: Path, tiny_plans: Plans) -> None:
    model = adapted()
    trained = set(model.manifest.trained_names)
    frozen = {name: tensor.clone() for name, tensor in model.model.state_dict().items() if name not in trained}
    schedule = RunSchedule(rounds=1, local_steps=2, peak_learning_rate=1e-2, seed=0)
    trainer(tmp_path, tiny_plans, model).train_round(schedule, round_number=1, site="a")
    assert all(torch.equal(model.model.state_dict()[name], tensor) for name, tensor in frozen.items())


def test_rate_factors_slow_down_what_they_name_and_the_longest_counts(tmp_path: Path, tiny_plans: Plans) -> None:
    """Adam's first step moves every value by the learning rate, whatever the gradient's size."""
    values = load_recipe("flap_sam").to_dict()
    values["optimizer"] |= {"weight_decay": 0.0, "rate_factors": {"mask_decoder.mask_tokens.*": 0.5, "mask_decoder.*.weight": 0.1}}
    model = adapted()
    before = snapshot(model)
    schedule = RunSchedule(rounds=10, local_steps=1, peak_learning_rate=1e-2, seed=0)
    learner = trainer(tmp_path, tiny_plans, model, Recipe.from_dict(values))
    rate = learner.train_round(schedule, round_number=1, site="a").last_learning_rate
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in snapshot(model).items()}
    assert moved["mask_decoder.mask_tokens.weight"] == pytest.approx(0.5 * rate, rel=0.01)
    assert moved["mask_decoder.output_upscaling.0.weight"] == pytest.approx(0.1 * rate, rel=0.01)
    assert moved["mask_decoder.output_upscaling.0.bias"] == pytest.approx(rate, rel=0.01)
    assert max(moved[name] for name in moved if ".lora_B_" in name) == pytest.approx(rate, rel=0.01)


def test_a_diverging_run_stops(tmp_path: Path, tiny_plans: Plans) -> None:
    model = adapted()
    model.trained_tensors()["mask_decoder.mask_tokens.weight"].fill_(float("nan"))
    schedule = RunSchedule(rounds=1, local_steps=1, peak_learning_rate=1e-3, seed=0)
    with pytest.raises(TrainingDiverged, match="lower the learning rate"):
        trainer(tmp_path, tiny_plans, model).train_round(schedule, round_number=1, site="a")


def test_slabs_depend_on_seed_round_site_and_step_only(tmp_path: Path, tiny_plans: Plans) -> None:
    store = write_store(tmp_path, CASES)
    np.random.seed(3)
    first = SlabLoader(store, CASES, tiny_plans).batch(1, 2, "a", 3)
    np.random.seed(4)
    loader = SlabLoader(store, CASES[::-1], tiny_plans)
    loader.batch(1, 2, "a", 0)
    again = loader.batch(1, 2, "a", 3)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[0].shape == (4, 3, 28, 28)
    assert first[1].shape == (4, 28, 28)
    for other in ((2, 2, "a", 3), (1, 3, "a", 3), (1, 2, "b", 3), (1, 2, "a", 2)):
        assert not torch.equal(first[0], loader.batch(*other)[0])


def test_augmentation_draws_from_its_sample_and_leaves_the_global_generators_alone() -> None:
    augment = SlabAugmentation((28, 28), (0, 1, 2))
    image, labels = np.random.default_rng(0).normal(size=(1, 4, 28, 28)).astype(np.float32), np.zeros((2, 28, 28), np.int64)
    for index in range(30):  # every transform is drawn in some of them
        results, after = [], []
        for seed in (5, 6):
            np.random.seed(seed)
            random.seed(seed)
            expected = (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]
            results.append(augment(image, labels, sample_generator(0, 1, "a", index))[0])
            after.append((np.random.get_state()[1].tolist(), random.getstate()) == expected)  # type: ignore[index]
        assert np.array_equal(results[0], results[1])
        assert all(after)


def test_image_and_labels_move_together() -> None:
    """A label drawn into the image stays on the label: over many draws, the image is brightest where the label is."""
    augment = SlabAugmentation((28, 28), (1, 2))
    labels = np.zeros((2, 28, 28), np.int64)
    labels[:, 4:12, 6:16] = 1
    image = np.repeat(labels[:1], 4, axis=0)[None].astype(np.float32) * 4
    for index in range(40):
        moved, target = augment(image, labels, sample_generator(0, 1, "a", index))
        inside, outside = moved[0, 1:3][target == 1].mean(), moved[0, 1:3][target == 0].mean()
        assert inside > outside + 1


def test_foreground_slabs_hold_foreground(tmp_path: Path) -> None:
    plans = make_tiny_plans(window=(14, 14), image_size=28, slab_depth=1, training={"effective_batch": 16, "foreground_fraction": 1.0})
    loader = SlabLoader(write_store(tmp_path, CASES), CASES, plans)
    labels = loader.batch(0, 1, "a", 0).labels
    assert (labels.flatten(1) > 0).any(dim=1).float().mean() > 0.9  # a rotation may carry a voxel out of the window


def test_triplanar_slabs_are_cut_along_every_axis_by_the_draw_of_the_sample(tmp_path: Path) -> None:
    """The blocks of the store have one profile along z (6 voxels long), and others along y and x (24 and 26)."""
    plans = make_tiny_plans(slab_depth=1, training={"effective_batch": 48, "foreground_fraction": 1.0})
    store = write_store(tmp_path, CASES)
    batch = SlabLoader(store, CASES[::-1], plans, configuration="triplanar").batch(0, 1, "a", 0)
    again = SlabLoader(store, CASES, plans, configuration="triplanar").batch(0, 1, "a", 0)
    assert torch.equal(batch.images, again.images) and torch.equal(batch.labels, again.labels)
    drawn = []
    for index in range(48):
        generator = sample_generator(0, 1, "a", index)
        generator.integers(len(CASES))  # the case
        drawn.append(int(generator.integers(3)))  # the view: along y, along x, and the plan's
    heights = [int((plane > 0).any(dim=1).sum()) for plane in batch.labels]
    assert set(drawn) == {0, 1, 2}
    assert max(height for height, view in zip(heights, drawn, strict=True) if view < 2) <= 8 < max(heights)  # 4 slices, scaled, turned
    assert (batch.labels.flatten(1) > 0).any(dim=1).float().mean() > 0.9
    inside, outside = batch.images[:, 1][batch.labels == 1].mean(), batch.images[:, 1][batch.labels == 0].mean()
    assert inside > outside + 1  # image and labels are cut alike


def test_a_triplanar_adapter_trains(tmp_path: Path) -> None:
    plans = make_tiny_plans(training={"effective_batch": 8})
    loader = SlabLoader(write_store(tmp_path, CASES), CASES, plans, configuration="triplanar")
    learner = LocalTrainer(adapted(), loader, plans, load_recipe("flap_sam"), torch.device("cpu"))
    schedule = RunSchedule(rounds=4, local_steps=30, peak_learning_rate=5e-3, seed=0)
    losses = [learner.train_round(schedule, round_number=i, site="a").loss for i in (1, 2, 3, 4)]
    assert losses[-1] < 0.85 * losses[0]


@pytest.mark.parametrize("mode", ["box", "point"])
def test_prompts_belong_to_the_slices_of_the_batch(tmp_path: Path, mode: str) -> None:
    plans = make_tiny_plans(training={"effective_batch": 16}, prompts={"mode": mode, "jitter_mm": 0.0, "dropout": 0.3})
    loader = SlabLoader(write_store(tmp_path, CASES), CASES, plans)
    batch = loader.batch(0, 1, "a", 0)
    assert batch.prompts is not None
    assert len(batch.prompts.classes) == len(batch.images)
    asked = 0
    for row in range(len(batch.images)):
        boxes, negative, classes = (
            part[row].tolist() for part in (batch.prompts.boxes.long(), batch.prompts.negative, batch.prompts.classes)
        )
        for (x0, y0, x1, y1), elsewhere, label in zip(boxes, negative, classes, strict=True):
            if label:
                asked += 1
                assert (batch.labels[row, y0 : y1 + 1, x0 : x1 + 1] == label).any() != elsewhere
    assert asked > 4
    unprompted = SlabLoader(loader._store, CASES, make_tiny_plans(training={"effective_batch": 16})).batch(0, 1, "a", 0)
    assert unprompted.prompts is None
    assert torch.equal(unprompted.images, batch.images)  # the same slabs, prompted or not


def test_a_prompted_model_learns_both_ways(tmp_path: Path) -> None:
    plans = make_tiny_plans(training={"effective_batch": 8}, prompts={"mode": "box", "jitter_mm": 0.5, "dropout": 0.5})
    model = build_planned(plans, load_recipe("flap_sam"), rank=2, weights=None)
    learner = trainer(tmp_path, plans, model)
    schedule = RunSchedule(rounds=4, local_steps=30, peak_learning_rate=5e-3, seed=0)
    losses = [learner.train_round(schedule, round_number=i, site="a").loss for i in (1, 2, 3, 4)]
    assert losses[-1] < 0.85 * losses[0]
    batch = SlabLoader(CaseStore(tmp_path), CASES, plans).batch(9, 1, "a", 0)
    with torch.no_grad():
        free = segmentation_loss(model.model(batch.images), batch.labels, load_recipe("flap_sam").loss).item()
        prompted = segmentation_loss(model.model(batch.images, batch.prompts), batch.labels, load_recipe("flap_sam").loss).item()
    assert max(free, prompted) < 0.85 * losses[0]
    assert prompted != free


def test_slabs_of_scribbles_hold_annotated_voxels(tmp_path: Path) -> None:
    """Of 6 slices only one row of one is annotated; background there counts like foreground."""
    plans = make_tiny_plans(window=(14, 14), image_size=28, slab_depth=1, training={"effective_batch": 32, "foreground_fraction": 0.0})
    scribbled = write_store(tmp_path / "scribbled", CASES)
    for case in CASES:
        stored = scribbled.open(case)
        labels = np.full(stored.labels.shape, -1, np.int8)
        labels[3, 8] = stored.labels[3, 8]
        scribbled.write(case, stored.image[:], labels, stored.properties, {}, np.argwhere(labels != -1))
    found = SlabLoader(scribbled, CASES, plans).batch(0, 1, "a", 0).labels
    assert (found.flatten(1) != -1).any(dim=1).float().mean() > 0.9  # a rotation may carry the row out of the window
    assert (found == 0).any() and (found == 1).any()


def test_slices_say_what_their_site_annotated(tmp_path: Path) -> None:
    plans = make_tiny_plans(training={"effective_batch": 16})
    store = write_store(tmp_path, CASES)
    whole, partial = SlabLoader(store, CASES, plans), SlabLoader(store, CASES, plans, {"case_2": (1,), "elsewhere": (2,)})
    plain, batch = whole.batch(0, 1, "a", 0), partial.batch(0, 1, "a", 0)
    assert plain.annotated is None
    assert torch.equal(plain.images, batch.images) and torch.equal(plain.labels, batch.labels)
    assert batch.annotated is not None and batch.annotated.shape == (16, 3)
    drawn = [CASES[sample_generator(0, 1, "a", i).integers(3)] for i in range(8)]
    expected = [[True, True, case != "case_2"] for case in drawn for _ in range(plans.slab_depth)]
    assert batch.annotated.tolist() == expected
    assert "case_2" in drawn and "case_1" in drawn
    assert SlabLoader(store, CASES, plans, {"elsewhere": (2,)}).batch(0, 1, "a", 0).annotated is None


def test_ignored_voxels_stay_ignored_through_cutting_and_augmentation(tmp_path: Path) -> None:
    plans = make_tiny_plans(window=(14, 14), training={"effective_batch": 64, "mirror_axes": (0, 1, 2)})  # magnified to 28
    store = write_store(tmp_path, ["case_1"], ignored=(slice(None), slice(10, None), slice(None)))
    loader = SlabLoader(store, ["case_1"], plans)
    labels = loader.batch(0, 1, "a", 0).labels
    assert np.unique(labels.numpy()).tolist() == [-1, 0, 1]  # no value in between, and no class 2, all of which is ignored here
    assert 0.2 < (labels == -1).float().mean() < 0.8


def test_a_site_without_training_cases_is_refused(tmp_path: Path, tiny_plans: Plans) -> None:
    with pytest.raises(FedsamError, match="no training case in this fold"):
        SlabLoader(write_store(tmp_path, CASES), [], tiny_plans)


@given(rounds=st.integers(1, 30), local_steps=st.integers(1, 30), warmup=st.floats(0, 0.5), final=st.floats(0, 1))
def test_the_learning_rate_depends_on_the_global_step_only(rounds: int, local_steps: int, warmup: float, final: float) -> None:
    schedule = ScheduleRecipe(name="cosine", warmup_fraction=warmup, final_fraction=final)
    rates = [
        learning_rate(2.0, schedule, round_number=r, step=s, rounds=rounds, local_steps=local_steps)
        for r in range(1, rounds + 1)
        for s in range(local_steps)
    ]
    flat = [learning_rate(2.0, schedule, round_number=1, step=s, rounds=1, local_steps=len(rates)) for s in range(len(rates))]
    assert rates == flat
    assert all(0 <= rate <= 2.0 for rate in rates)
    top = rates.index(max(rates))
    assert all(later <= earlier + 1e-12 for earlier, later in zip(rates[top:], rates[top + 1 :], strict=False))
