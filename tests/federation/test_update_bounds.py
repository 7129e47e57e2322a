"""How far an honest site can move: held to real AdamW, and to what the wire adds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.federation.codec.coding import decode, encode
from fedsam_pipeline.federation.lora_aggregation.methods import LORA_METHODS
from fedsam_pipeline.federation.strategy_settings import STRATEGIES
from fedsam_pipeline.federation.update_bounds import WIRE_SLACK, UpdateBound, adam_reach, stays_between
from fedsam_pipeline.federation.updates import UpdateRefused
from fedsam_pipeline.specs.manifest import Manifest, TensorEntry
from fedsam_pipeline.specs.recipe import load_recipe, recipe_names

OPTIMIZER = load_recipe("default").optimizer


def bound(steps: int = 5, rate: float = 0.01, **changes: object) -> UpdateBound:
    return UpdateBound(OPTIMIZER.model_copy(update=changes), rate, steps)


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
    largest = bound(steps, rate, weight_decay=decay, betas=betas).largest("other", start)
    assert bool(((parameter.detach() - start).abs() <= largest / WIRE_SLACK + 1e-6 * (1 + start.abs())).all())


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


@pytest.mark.parametrize("wire", ["fp16", "int8", "int4"])
def test_what_the_wire_adds_to_the_largest_step_is_within_the_bound(wire: str) -> None:
    entry = TensorEntry(name="other", shape=(16, 8), dtype="float32", travels="both")
    manifest = Manifest(recipe="default", base_model="lite_medsam", tensors=(entry,))
    limit = bound()
    held = {"other": torch.randn(16, 8, generator=torch.Generator().manual_seed(0))}
    lost: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        largest = limit.largest("other", held["other"]).float() / WIRE_SLACK
        sign = torch.randn(16, 8, generator=generator).sign()
        encoded = encode({"other": held["other"] + sign * largest * torch.rand(16, 1, generator=generator)}, held, wire, lost)  # type: ignore[arg-type]
        lost = encoded.residual
        arrived = decode(encoded.payload, held, manifest)
        limit.check(arrived, held)
        held = arrived


def test_an_update_that_was_scaled_is_refused_and_says_no_value() -> None:
    held = {"a": torch.zeros(3, 2), "image_encoder.norm.weight": torch.ones(4)}
    honest = {name: tensor + 0.02 for name, tensor in held.items()}
    limit = bound()
    limit.check(honest, held)
    for name in held:
        scaled = honest | {name: held[name] + 1000 * 0.02}
        with pytest.raises(UpdateRefused, match=f"{name}: .* times farther from where it began than 1 rounds of 5 steps can bring it"):
            limit.check(scaled, held)


def test_weights_that_train_more_slowly_have_a_smaller_bound() -> None:
    zeros = torch.zeros(1)
    assert float(bound().largest("image_encoder.norm.weight", zeros)) == pytest.approx(0.2 * float(bound().largest("x", zeros)), rel=0.01)


def test_before_the_first_round_a_state_is_what_it_was() -> None:
    held = {"a": torch.randn(5, generator=torch.Generator().manual_seed(2))}
    bound().check({"a": held["a"].clone()}, held, rounds=0)
    with pytest.raises(UpdateRefused, match="no step"):
        bound().check({"a": held["a"] + 0.001}, held, rounds=0)
    bound().check({"a": torch.zeros(0)}, {"a": torch.zeros(0)})


def test_means_medians_and_choices_stay_between_the_updates() -> None:
    recipe = load_recipe("default")
    known = {name for name in STRATEGIES if stays_between(recipe.aggregation.model_copy(update={"strategy": name}))}
    assert known == {"fedavg", "fedprox", "fedmedian", "fedtrimmedavg", "krum", "bulyan"}
    factors = {name for name in LORA_METHODS if stays_between(recipe.aggregation.model_copy(update={"lora_method": name}))}
    assert factors == {"naive", "ffa", "rolora", "fedex"}
