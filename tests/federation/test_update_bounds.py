"""How far an honest site can move: held to real AdamW, and to what the wire adds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.federation.codec.coding import decode, encode
from fedsam_pipeline.federation.lora_aggregation.methods import LORA_METHODS
from fedsam_pipeline.federation.strategy_settings import STRATEGIES
from fedsam_pipeline.federation.update_bounds import SLACK, UpdateBound, adam_reach, stays_between
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.flower.reach import state_bound, update_bound
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry, Wire
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names
from fedsam_pipeline.training.local_trainer import RunSchedule

OPTIMIZER = load_recipe("default").optimizer


def bound(path: float = 0.05, **changes: object) -> UpdateBound:
    return UpdateBound(OPTIMIZER.model_copy(update=changes), path)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 60),
    rate=st.floats(1e-5, 0.1),
    decay=st.sampled_from([0.0, 0.01, 0.5]),
    betas=st.sampled_from([(0.9, 0.999), (0.5, 0.9), (0.0, 0.99), (0.9, 0.82)]),
    silent=st.floats(0, 1),
)
def test_no_gradients_bring_adamw_beyond_the_bound(
    seed: int, steps: int, rate: float, decay: float, betas: tuple[float, float], silent: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(20, generator=generator) * 3
    parameter = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([parameter], lr=rate, betas=betas, weight_decay=decay, fused=True)
    for _ in range(steps):
        size = 10.0 ** (torch.rand(20, generator=generator) * 8 - 4)
        parameter.grad = torch.randn(20, generator=generator).sign() * size * (torch.rand(20, generator=generator) > silent)
        optimizer.step()
    largest = bound(steps * rate, weight_decay=decay, betas=betas).largest("other", start)
    assert bool(((parameter.detach() - start).abs() <= largest / SLACK + 1e-6 * (1 + start.abs())).all())


def test_a_gradient_after_a_long_silence_comes_near_the_bound() -> None:
    """So the constant is not only an upper end on paper: the gradients of Cauchy and Schwarz's equality reach it."""
    beta1, beta2 = 0.9, 0.99
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=1.0, betas=(beta1, beta2), weight_decay=0.0, eps=0.0)
    steps = 600
    for step in range(steps):
        parameter.grad = torch.tensor([(beta1 / beta2) ** (steps - 1 - step)], dtype=torch.float64)
        before = parameter.item()
        optimizer.step()
    assert abs(parameter.item() - before) == pytest.approx(adam_reach(beta1, beta2), rel=0.01)


def test_the_reach_is_finite_where_the_second_moment_remembers_longer() -> None:
    assert adam_reach(0.9, 0.999) == pytest.approx(0.1 / math.sqrt(0.001 * (1 - 0.81 / 0.999)))
    assert math.isinf(adam_reach(0.9, 0.81)) and math.isinf(adam_reach(0.5, 0.0))
    for name in recipe_names():
        assert math.isfinite(adam_reach(*load_recipe(name).optimizer.betas))
    bound(betas=(0.9, 0.5)).check({"a": torch.full((2,), 1e30)}, {"a": torch.zeros(2)})  # nothing is known of such an optimizer
    with pytest.raises(UpdateRefused):  # but that it trained nothing yet
        bound(0.0, betas=(0.9, 0.5)).check({"a": torch.full((2,), 0.01)}, {"a": torch.zeros(2)})


@pytest.mark.parametrize("wire", ["fp32", "fp16", "int8", "int4"])
def test_honest_sites_stay_within_the_bound_of_a_falling_rate_over_any_wire(wire: Wire) -> None:
    """Every value moves as far as it can, round after round, and what rounding owes of large rounds comes due in small ones."""
    entry = TensorEntry(name="other", shape=(16, 8), dtype="float32", travels="both")
    manifest = Manifest(recipe="default", base_model="lite_medsam", tensors=(entry,))
    recipe, schedule = load_recipe("default"), RunSchedule(rounds=12, local_steps=5, peak_learning_rate=0.01, seed=0)
    generator = torch.Generator().manual_seed(1)
    held = {"other": torch.randn(16, 8, generator=generator)}
    began, lost = held, dict[str, torch.Tensor]()
    for number in range(1, 13):
        own = update_bound(recipe, schedule, "fp32", number).largest("other", held["other"]).float() / SLACK
        step = torch.randn(16, 8, generator=generator).sign() * own * torch.rand(16, 1, generator=generator)
        encoded = encode({"other": held["other"] + step}, held, wire, lost)
        lost = encoded.residual
        arrived = decode(encoded.payload, held, manifest)
        limit = update_bound(recipe, schedule, wire, number)
        limit.check(arrived, held)
        with pytest.raises(UpdateRefused):
            limit.check({"other": held["other"] + 30 * own}, held)
        held = arrived
        state_bound(recipe, schedule, wire, number).check(held, began)


def test_a_last_round_has_a_bound_of_its_own() -> None:
    recipe, schedule = load_recipe("default"), RunSchedule(rounds=10, local_steps=25, peak_learning_rate=0.005, seed=0)
    paths = [update_bound(recipe, schedule, "fp32", number).path for number in range(1, 11)]
    assert paths[2] > 20 * paths[9] and state_bound(recipe, schedule, "fp32", 10).path == pytest.approx(sum(paths))
    assert update_bound(recipe, schedule, "int4", 10).path == pytest.approx(paths[9] + 0.08 * max(paths))
    assert state_bound(recipe, schedule, "int4", 0).path == 0


def test_an_update_that_was_scaled_is_refused_and_says_no_value() -> None:
    held = {"a": torch.zeros(3, 2), "image_encoder.norm.weight": torch.ones(4)}
    honest = {name: tensor + 0.02 for name, tensor in held.items()}
    limit = bound()
    limit.check(honest, held)
    for name in held:
        scaled = honest | {name: held[name] + 1000 * 0.02}
        with pytest.raises(UpdateRefused, match=f"{name}: .* times farther from where it began than training can have brought it"):
            limit.check(scaled, held)


def test_weights_that_train_more_slowly_have_a_smaller_bound() -> None:
    zeros = torch.zeros(1)
    assert float(bound().largest("image_encoder.norm.weight", zeros)) == pytest.approx(0.2 * float(bound().largest("x", zeros)), rel=0.01)


def test_before_the_first_round_a_state_is_what_it_was() -> None:
    held = {"a": torch.randn(5, generator=torch.Generator().manual_seed(2))}
    bound(0.0).check({"a": held["a"].clone()}, held)
    with pytest.raises(UpdateRefused, match="farther from where it began"):
        bound(0.0).check({"a": held["a"] + 0.001}, held)
    bound().check({"a": torch.zeros(0)}, {"a": torch.zeros(0)})


def test_means_medians_and_choices_stay_between_the_updates() -> None:
    recipe = load_recipe("default")
    known = {name for name in STRATEGIES if stays_between(recipe.aggregation.model_copy(update={"strategy": name}))}
    assert known == {"fedavg", "fedprox", "fedmedian", "fedtrimmedavg", "krum", "bulyan"}
    factors = {name for name in LORA_METHODS if stays_between(recipe.aggregation.model_copy(update={"lora_method": name}))}
    assert factors == {"naive", "ffa", "rolora"}
