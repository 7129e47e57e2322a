"""Training from kept features is training on the pool; what is kept is used, and only where it may be."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.build import AdaptedModel, build_planned
from fedsam_pipeline.model.encoder_split import EncoderSplit
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.recipe import CacheRecipe, Recipe, load_recipe
from fedsam_pipeline.training.feature_file import HEADER_BYTES
from fedsam_pipeline.training.feature_pool import FILE_NAME, SlabPool
from fedsam_pipeline.training.local_trainer import LocalTrainer, RunSchedule
from fedsam_pipeline.training.slab_loader import SlabLoader
from tests.conftest import make_tiny_plans
from tests.model.tiny_models import SMALL_VIT, TINY_VIT, register_small_vit
from tests.training.stores import write_store

CASES = ["case_1", "case_2", "case_3"]
SCHEDULE = RunSchedule(rounds=2, local_steps=3, peak_learning_rate=1e-3, seed=7)
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def _small_vit(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)


def cached(name: str = "late_lora", slabs_per_case: int = 2) -> Recipe:
    return Recipe.from_dict(load_recipe(name).to_dict() | {"cache": {"slabs_per_case": slabs_per_case}})


def plans_for(base: str, **changes: Any) -> Plans:
    size = 28 if base == TINY_VIT else 64
    return make_tiny_plans(base_model=base, image_size=size, **changes)


class Site:
    """One site with its store, which trains from its folder of features, or from none."""

    def __init__(self, folder: Path, plans: Plans, recipe: Recipe, *, annotated: bool = False, dtype: torch.dtype | None = None) -> None:
        self.store = write_store(folder / "store", CASES, hidden=2 if annotated else None)
        self.plans, self.recipe, self.dtype = plans, recipe, dtype
        self.annotated = {"case_2": (1,)} if annotated else None
        self.folder = folder / "features"
        self.encoded = 0

    def trainer(self, model: AdaptedModel, *, keep: bool = True, micro_batch: int | None = None) -> LocalTrainer:
        loader = SlabLoader(self.store, CASES, self.plans, self.annotated)
        folder = self.folder if keep else None
        trainer = LocalTrainer(model, loader, self.plans, self.recipe, torch.device("cpu"), micro_batch=micro_batch, feature_folder=folder)
        trainer._autocast = self.dtype
        return trainer

    def model(self) -> AdaptedModel:
        model = build_planned(self.plans, self.recipe, rank=2, weights=None)
        model.model.image_encoder.get_submodule("patch_embed").register_forward_hook(lambda *_: self._count())
        return model

    def _count(self) -> None:
        self.encoded += 1

    def trained(self, rounds: tuple[int, ...] = (1, 2), **options: Any) -> dict[str, torch.Tensor]:
        model = self.model()
        trainer = self.trainer(model, **options)
        for number in rounds:
            trainer.train_round(SCHEDULE, round_number=number, site="a")
        return {name: tensor.clone() for name, tensor in model.trained_tensors().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(tensor, second[name]) for name, tensor in first.items())


MIXED = {"slab_depth": 2, "slice_mixing": "mixer", "encoder_inputs": [[{"channel": 0, "offset": 0}]] * 3}
PROMPTED = {"prompts": {"mode": "box", "jitter_mm": 1.0, "dropout": 0.5}}


@pytest.mark.parametrize("base", [TINY_VIT, SMALL_VIT])
@pytest.mark.parametrize(
    ("recipe", "changes", "annotated"),
    [("late_lora", {}, False), ("late_lora", MIXED | PROMPTED, True), ("decoder", {}, False), ("partial_decoder", PROMPTED, True)],
)
def test_training_from_kept_features_is_training_on_the_pool(
    tmp_path: Path, base: str, recipe: str, changes: dict[str, Any], annotated: bool
) -> None:
    """In float32, to rounding: without a file the encoder sees the batch as a whole, with one it sees slab by slab."""
    site = Site(tmp_path, plans_for(base, **changes), cached(recipe), annotated=annotated)
    anew = site.trained(keep=False)
    assert site.encoded == 6
    kept = site.trained()
    assert site.encoded == 6 + 1 + 6  # one for the layout of the records, one for each slab of the pool: 6 steps of 2 slabs are two passes
    for name, tensor in anew.items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [None, BF16])
@pytest.mark.parametrize("base", [TINY_VIT, SMALL_VIT])
def test_resumed_from_the_file_the_run_is_the_same_bit_for_bit(tmp_path: Path, base: str, dtype: torch.dtype | None) -> None:
    site = Site(tmp_path, plans_for(base), cached(), dtype=dtype)
    whole = site.trained()
    computed = site.encoded
    assert same(site.trained(), whole) and site.encoded == computed  # everything was in the file
    first = site.model()
    before = site.trainer(first)
    before.train_round(SCHEDULE, round_number=1, site="a")
    state, tensors = before.optimizer_state(), {name: tensor.clone() for name, tensor in first.trained_tensors().items()}
    (site.folder / FILE_NAME).unlink()
    second = site.model()
    second.load_tensors(tensors)
    after = site.trainer(second)
    after.load_optimizer_state(state)
    after.train_round(SCHEDULE, round_number=2, site="a")
    assert same(second.trained_tensors(), whole)


def test_a_step_in_parts_trains_the_same_model_from_features(tmp_path: Path) -> None:
    site = Site(tmp_path, plans_for(TINY_VIT, **MIXED, **PROMPTED), cached())
    whole, parts = site.trained(), site.trained(micro_batch=2)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=2e-4)


def test_what_is_kept_is_what_the_encoder_computes(tmp_path: Path) -> None:
    """Under bfloat16 autocast ViT's residual stream is float32, and so is the record: nothing is rounded."""
    for base, dtype in ((SMALL_VIT, "float32"), (TINY_VIT, "bfloat16")):
        site = Site(tmp_path / base, plans_for(base), cached(), dtype=BF16)
        site.trained((1,))
        assert f'"dtype": "{dtype}"' in (site.folder / FILE_NAME).read_bytes()[:HEADER_BYTES].decode()


def test_features_of_other_weights_or_another_seed_are_not_used(tmp_path: Path) -> None:
    site = Site(tmp_path, plans_for(TINY_VIT), cached())
    site.trained((1,))
    computed = site.encoded
    model = site.model()
    site.trainer(model).train_round(SCHEDULE, round_number=1, site="a")
    assert site.encoded == computed
    dict(model.model.named_parameters())["image_encoder.patch_embed.seq.0.c.weight"].data.mul_(1.01)
    site.trainer(model).train_round(SCHEDULE, round_number=1, site="a")
    assert site.encoded == 2 * computed
    seeded = RunSchedule(rounds=2, local_steps=3, peak_learning_rate=1e-3, seed=8)
    site.trainer(model).train_round(seeded, round_number=1, site="a")
    assert site.encoded == 3 * computed


def test_a_damaged_record_is_computed_again(tmp_path: Path) -> None:
    site = Site(tmp_path, plans_for(TINY_VIT), cached())
    whole = site.trained()
    path, before = site.folder / FILE_NAME, site.encoded
    content = bytearray(path.read_bytes())
    content[HEADER_BYTES + 20] ^= 1
    path.write_bytes(content)
    assert same(site.trained(), whole) and site.encoded == before + 1


def test_prompts_are_drawn_anew_at_every_visit(tmp_path: Path) -> None:
    site = Site(tmp_path, plans_for(TINY_VIT, **PROMPTED), cached(slabs_per_case=1))
    loader = SlabLoader(site.store, CASES, site.plans)
    trainer = site.trainer(site.model())
    assert trainer._recipe.cache is not None
    pool = SlabPool(loader, trainer._recipe.cache, 7, "a")
    sample = pool.sample(1)
    assert sample.case == "case_2" and torch.equal(sample.images, pool.sample(1).images)
    batches = [pool.batch(sample.images, [sample.labels], [1], 1, first) for first in range(12)]
    boxes = {str(batch.prompts) for batch in batches}
    assert len(boxes) > 2 and all(torch.equal(batch.labels, sample.labels) for batch in batches)


class Cases:
    """Stands in for a loader where only its cases matter."""

    cases = ("a", "b", "c")


@given(per_case=st.integers(1, 5), seed=st.integers(0, 3), first=st.integers(0, 40), count=st.integers(0, 40))
def test_every_pass_takes_every_slab_once(per_case: int, seed: int, first: int, count: int) -> None:
    pool = SlabPool(Cases(), CacheRecipe(slabs_per_case=per_case), seed, "a")  # type: ignore[arg-type]
    assert pool.size == 3 * per_case
    run = pool.numbers(0, 30 * pool.size)
    assert pool.numbers(first, count) == run[first : first + count]
    passes = [run[at : at + pool.size] for at in range(0, len(run), pool.size)]
    assert all(sorted(order) == list(range(pool.size)) for order in passes)
    assert per_case < 3 or len({tuple(order) for order in passes}) > 1
    assert [pool.case(number) for number in range(pool.size)] == [case for case in Cases.cases for _ in range(per_case)]


def test_a_disk_without_room_ends_the_round_with_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("fedsam_pipeline.training.feature_file.shutil.disk_usage", lambda _: Usage)
    site = Site(tmp_path, plans_for(TINY_VIT), cached())
    with pytest.raises(FedsamError, match="disk cannot hold the features"):
        site.trained()
    assert not (site.folder / FILE_NAME).exists()


def test_the_recipe_of_the_package_keeps_features_and_others_hash_as_before() -> None:
    recipe = load_recipe("late_lora_cached")
    assert recipe.cache == CacheRecipe(slabs_per_case=16)
    assert "cache" not in load_recipe("late_lora").to_dict()
    assert (
        load_recipe("late_lora").sha256()
        != Recipe.from_dict(load_recipe("late_lora").to_dict() | {"cache": {"slabs_per_case": 1}}).sha256()
    )
    split = EncoderSplit(adapted := build_planned(plans_for(TINY_VIT), recipe, rank=2, weights=None).model, ())
    assert torch.equal(split.after(split.before(image := torch.zeros(1, 3, 28, 28))), adapted.encode(image))
