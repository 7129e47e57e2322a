"""The running mean equals the mean of all, in whatever order updates come, and keeps none of them."""

import gc
import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.naive import naive
from fedsam_pipeline.federation.streaming import WeightedMean
from tests.federation.lora_aggregation.random_updates import BIAS, Updates, random_updates, random_weights


def streamed(updates: Updates, weights: dict[str, float], order: list[str]) -> WeightedMean:
    mean = WeightedMean()
    for site in order:
        mean.add(updates[site], weights[site])
    return mean


@given(st.integers(0, 1000), st.integers(1, 8), st.randoms(use_true_random=False))
def test_equal_to_the_batch_in_any_order(seed: int, sites: int, shuffle) -> None:  # type: ignore[no-untyped-def]
    updates, weights = random_updates(seed, sites), random_weights(seed, sites)
    order = list(updates)
    shuffle.shuffle(order)
    mean = streamed(updates, weights, order)
    total = sum(weights.values())
    for name, value in mean.result(torch.float64).items():
        expected = torch.stack([weights[site] / total * updates[site][name].double() for site in updates]).sum(dim=0)
        assert float((value - expected).abs().max()) <= 1e-12 * max(1.0, float(expected.abs().max()))
    in_order, batch = streamed(updates, weights, sorted(updates)).result(), naive(updates, weights)
    result = mean.result()
    assert all(torch.equal(result[name], in_order[name]) for name in batch)  # to the last bit
    for name in batch:
        torch.testing.assert_close(result[name], batch[name], rtol=1e-7, atol=1e-9)


def test_small_updates_beside_large_ones_are_not_lost() -> None:
    mean = WeightedMean()
    for value in (1e20, 1.0, -1e20):
        mean.add({"a": torch.tensor([value])}, 1.0)
    assert mean.result()["a"].item() == pytest.approx(1 / 3)


def test_no_update_is_kept() -> None:
    mean = WeightedMean()
    kept = []
    for seed in range(5):
        tensor = torch.full((8,), float(seed))
        kept.append(weakref.ref(tensor))
        mean.add({"a": tensor}, 1.0)
        del tensor
    gc.collect()
    assert not any(reference() is not None for reference in kept)
    assert torch.equal(mean.result()["a"], torch.full((8,), 2.0))


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_means_nothing_is_refused(weight: float) -> None:
    with pytest.raises(FedsamError, match="no usable weight"):
        WeightedMean().add({"a": torch.ones(1)}, weight)


@pytest.mark.parametrize("other", [{"a": torch.ones(2)}, {"b": torch.ones(1)}, {}])
def test_an_update_that_does_not_fit_is_refused_and_not_added(other: dict[str, torch.Tensor]) -> None:
    mean = WeightedMean()
    mean.add({"a": torch.ones(1)}, 1.0)
    with pytest.raises(FedsamError, match="two sites send different tensors"):
        mean.add(other, 1.0)
    assert torch.equal(mean.result()["a"], torch.ones(1))


def test_nothing_has_no_mean() -> None:
    mean = WeightedMean()
    with pytest.raises(FedsamError, match="0 updates"):
        mean.result()
    mean.add({BIAS: torch.ones(1)}, 0.0)
    with pytest.raises(FedsamError, match="1 updates, weights sum to 0"):
        mean.result()
