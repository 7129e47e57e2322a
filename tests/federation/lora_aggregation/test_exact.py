"""Methods that are exact: the product of the aggregate is the aggregate of the products."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.fedex import add_residuals, fedex
from fedsam_pipeline.federation.lora_aggregation.ffa import ffa
from fedsam_pipeline.federation.lora_aggregation.rolora import rolora, trained_in
from fedsam_pipeline.model.lora import LoRALinear
from fedsam_pipeline.model.lora_residuals import fold_residuals, folded_residuals, split_residuals
from tests.federation.lora_aggregation.random_updates import (
    BIAS,
    LAYER,
    A,
    B,
    assert_same_product,
    cohort,
    cohorts,
    product,
    random_updates,
    random_weights,
)

RESIDUAL_A, RESIDUAL_B = f"{LAYER}.residual_A_q", f"{LAYER}.residual_B_q"


def share(updates: dict[str, dict[str, torch.Tensor]], name: str) -> None:
    """All sites hold the first one's value."""
    for tensors in updates.values():
        tensors[name] = updates["site_0"][name].clone()


@given(cohorts)
def test_ffa(drawn: tuple[int, int, int, int, int]) -> None:
    updates, weights = cohort(drawn)
    share(updates, A)
    result = ffa(updates, weights)
    assert_same_product(product(result), updates, weights)
    assert torch.equal(result[A], updates["site_0"][A])


@given(cohorts, st.integers(1, 6))
def test_rolora(drawn: tuple[int, int, int, int, int], round_number: int) -> None:
    updates, weights = cohort(drawn)
    frozen = A if round_number % 2 else B
    share(updates, frozen)
    result = rolora(updates, weights, round_number)
    assert_same_product(product(result), updates, weights)
    assert torch.equal(result[frozen], updates["site_0"][frozen])


@given(cohorts)
def test_fedex(drawn: tuple[int, int, int, int, int]) -> None:
    updates, weights = cohort(drawn)
    adapter, residuals = split_residuals(fedex(updates, weights))
    found = product(adapter)
    if residuals:
        assert residuals[RESIDUAL_A].shape == ((len(updates) - 1) * len(adapter[A]), adapter[A].shape[1])
        found += residuals[RESIDUAL_B].double() @ residuals[RESIDUAL_A].double()
    assert bool(residuals) == (len(updates) > 1)
    assert_same_product(found, updates, weights)


@pytest.mark.parametrize("targets", [{"q": torch.arange(7)}, {"q": torch.arange(3, 10), "v": torch.arange(12, 14)}])
def test_a_model_with_folded_residuals_computes_with_the_exact_sum(targets: dict[str, torch.Tensor]) -> None:
    updates, weights = random_updates(1, 3), random_weights(1, 3)
    linear = torch.nn.Linear(9, 7 if len(targets) == 1 else 14)
    made = LoRALinear.from_linear(linear, rank=3, alpha=6.0, targets=targets, generator=torch.Generator().manual_seed(0))
    encoder = torch.nn.ModuleDict({"encoder": torch.nn.ModuleDict({"attn": torch.nn.ModuleDict({"qkv": made})})})
    base = made.weight.detach().clone()
    adapter, residuals = split_residuals(fedex(updates, weights))
    made.load_state_dict({"lora_A_q": adapter[A], "lora_B_q": adapter[B]}, strict=False)
    fold_residuals(encoder, residuals)
    expected = base.double()
    expected[targets["q"]] += 2.0 * sum(weights[s] * product(updates[s]) for s in updates) / sum(weights.values())
    torch.testing.assert_close((made.weight + made.delta()).double(), expected, rtol=1e-6, atol=1e-5)


def test_the_residuals_of_many_rounds_stay_as_small_as_the_weight() -> None:
    total: dict[str, torch.Tensor] = {}
    expected = torch.zeros(7, 9, dtype=torch.float64)
    for seed in range(5):
        _, residuals = split_residuals(fedex(random_updates(seed, 3), random_weights(seed, 3)))
        expected += residuals[RESIDUAL_B].double() @ residuals[RESIDUAL_A].double()
        total = add_residuals(total, residuals)
    assert total[RESIDUAL_B].shape == (7, 7) and total[RESIDUAL_A].shape == (7, 9)
    torch.testing.assert_close(
        total[RESIDUAL_B].double() @ total[RESIDUAL_A].double(), expected, rtol=0, atol=1e-5 * float(expected.norm())
    )
    assert add_residuals(total, {}).keys() == total.keys()


def test_folding_for_a_while_leaves_no_trace() -> None:
    layer = LoRALinear(9, 7, bias=False, rank=3, alpha=3.0, targets={"q": torch.arange(4), "v": torch.arange(4, 7)})
    torch.nn.init.normal_(layer.weight)
    before = layer.weight.detach().clone()
    residuals: dict[str, torch.Tensor] = {}
    for target, rows in (("q", 4), ("v", 3)):
        residuals |= {f"layer.residual_B_{target}": torch.ones(rows, 2), f"layer.residual_A_{target}": torch.ones(2, 9)}
    with pytest.raises(KeyboardInterrupt), folded_residuals(torch.nn.ModuleDict({"layer": layer}), residuals):
        torch.testing.assert_close(layer.weight.detach(), before + 2)
        raise KeyboardInterrupt
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("change", ["layer", "target", "shape"])
def test_residuals_that_do_not_fit_the_model_are_refused_and_leave_it_alone(change: str) -> None:
    layer = LoRALinear(9, 7, bias=False, rank=3, alpha=3.0, targets={"q": torch.arange(7)})
    torch.nn.init.ones_(layer.weight)
    model = torch.nn.ModuleDict({"layer": layer})
    names = {"layer": "other.residual_%s_q", "target": "layer.residual_%s_v", "shape": "layer.residual_%s_q"}
    rows = 6 if change == "shape" else 7
    bad = {names[change] % "B": torch.ones(rows, 2), names[change] % "A": torch.ones(2, 9)}
    good = {"layer.residual_B_q": torch.ones(7, 2), "layer.residual_A_q": torch.ones(2, 9)}
    with pytest.raises(FedsamError, match=r"does not fit the model[\s\S]*target"):
        fold_residuals(model, {**good, **bad})
    assert torch.equal(layer.weight, torch.ones(7, 9))


@pytest.mark.parametrize("round_number", [1, 2])
def test_frozen_factors_need_not_travel(round_number: int) -> None:
    updates, weights = random_updates(3, 3), random_weights(3, 3)
    trained = trained_in([A, B, BIAS], round_number)
    assert trained == ([B, BIAS] if round_number == 1 else [A, BIAS])
    sent = {site: {name: tensors[name] for name in trained} for site, tensors in updates.items()}
    assert sorted(rolora(sent, weights, round_number)) == sorted(trained)


@pytest.mark.parametrize(("method", "frozen"), [("ffa", "A"), ("rolora", "A"), ("rolora", "B")])
def test_a_frozen_factor_that_moved_is_refused(method: str, frozen: str) -> None:
    updates, weights = random_updates(0, 3), random_weights(0, 3)
    share(updates, A)
    share(updates, B)
    updates["site_2"][A if frozen == "A" else B][0, 0] += 1e-3
    with pytest.raises(FedsamError, match=rf"{method} freezes {frozen}[\s\S]*lora_{frozen}_q of site_0 and site_2"):
        ffa(updates, weights) if method == "ffa" else rolora(updates, weights, 1 if frozen == "A" else 2)


def test_freezing_all_that_travels_is_refused() -> None:
    updates = {"site_0": {A: torch.ones(2, 2), BIAS: torch.ones(1)}}
    with pytest.raises(FedsamError, match=r"ffa has nothing to average[\s\S]*lora_B_q"):
        ffa(updates, {"site_0": 1})
