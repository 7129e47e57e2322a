"""What every method does with what sites send: pairing, checks, order, other tensors."""

import pytest
import torch

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.methods import LORA_METHODS, aggregate_lora
from fedsam_pipeline.federation.lora_aggregation.pairs import Pair, factor_kind, pairs
from fedsam_pipeline.federation.lora_aggregation.site_updates import SiteUpdates
from tests.federation.lora_aggregation.random_updates import BIAS, A, B, Updates, random_updates, random_weights

OPTIONS = {"regularization": 0.01, "alignment": 0.5}
PAIRED = [method for method in LORA_METHODS if method not in ("ffa", "rolora")]


def aggregated(method: str, updates: Updates, weights: dict[str, float], round_number: int = 1) -> dict[str, torch.Tensor]:
    return aggregate_lora(method, updates, weights, received=random_updates(99, 1)["site_0"], round_number=round_number, options=OPTIONS)


def fitting(seed: int, sites: int) -> Updates:
    """Updates that every method takes: A is the same at all sites."""
    updates = random_updates(seed, sites)
    for tensors in updates.values():
        tensors[A] = updates["site_0"][A].clone()
    return updates


def test_pairs_are_found_by_name() -> None:
    names = ["z.lora_B_v", "z.lora_A_v", "a.b.lora_A_q", "a.b.lora_B_q", "a.b.weight", "lora_A_q", "x.lora_C_q", "x.lora_A_q.bias"]
    assert pairs(names) == (Pair("a.b", "q"), Pair("z", "v"))
    assert pairs(names)[0].a == "a.b.lora_A_q" and pairs(names)[0].b == "a.b.lora_B_q"
    assert [factor_kind(name) for name in names[:3]] == ["B", "A", "A"]
    assert {factor_kind(name) for name in names[4:]} == {None}


@pytest.mark.parametrize(("names", "words"), [([BIAS], "no tensor that travels is a LoRA factor"), ([A, BIAS], "without its partner")])
@pytest.mark.parametrize("method", PAIRED)
def test_names_without_pairs_are_refused(method: str, names: list[str], words: str) -> None:
    updates = {site: {name: tensors[name] for name in names} for site, tensors in random_updates(0, 2).items()}
    with pytest.raises(FedsamError, match=words):
        aggregated(method, updates, random_weights(0, 2))


@pytest.mark.parametrize("method", LORA_METHODS)
def test_other_tensors_are_weighted_means_and_all_is_float32(method: str) -> None:
    updates, weights = fitting(1, 4), random_weights(1, 4)
    result = aggregated(method, updates, weights)
    expected = sum(weights[site] * tensors[BIAS].double() for site, tensors in updates.items()) / sum(weights.values())
    assert torch.equal(result[BIAS], expected.float())  # type: ignore[union-attr]
    assert {A, B, BIAS} <= result.keys() and all(tensor.dtype == torch.float32 for tensor in result.values())


@pytest.mark.parametrize("method", LORA_METHODS)
def test_the_order_in_which_sites_answer_and_the_scale_of_weights_do_not_show(method: str) -> None:
    updates, weights = fitting(2, 5), {f"site_{i}": float(i + 1) for i in range(5)}
    first = aggregated(method, updates, weights)
    turned = {site: dict(reversed(updates[site].items())) for site in reversed(updates)}
    second = aggregated(method, turned, {site: 4 * weight for site, weight in weights.items()})
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("method", LORA_METHODS)
def test_updates_are_left_as_they_are(method: str) -> None:
    updates = fitting(3, 3)
    before = {site: {name: tensor.clone() for name, tensor in tensors.items()} for site, tensors in updates.items()}
    for tensor in aggregated(method, updates, random_weights(3, 3)).values():
        tensor.add_(1)
    assert all(torch.equal(updates[site][name], before[site][name]) for site in before for name in before[site])


@pytest.mark.parametrize("method", LORA_METHODS)
def test_a_site_of_weight_zero_does_not_count(method: str) -> None:
    updates = fitting(4, 3)
    with_it = aggregated(method, updates, {"site_0": 2, "site_1": 1, "site_2": 0})
    without = aggregated(method, {site: updates[site] for site in ("site_0", "site_1")}, {"site_0": 2, "site_1": 1})
    for name in (A, B, BIAS):
        torch.testing.assert_close(with_it[name], without[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", LORA_METHODS)
def test_sites_that_differ_are_refused_by_name(method: str) -> None:
    for change in ({B: torch.zeros(7, 2), A: torch.zeros(2, 9)}, {"extra": torch.zeros(1)}):
        updates = fitting(5, 3)
        updates["site_2"] |= change
        with pytest.raises(FedsamError, match=r"two sites send different tensors[\s\S]*site_0[\s\S]*site_2"):
            aggregated(method, updates, random_weights(5, 3))


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"site_0": 1.0}, "site_1: nan"),
        ({"site_0": 1.0, "site_1": -2.0}, "site_1: -2.0"),
        ({"site_0": 1.0, "site_1": float("inf")}, "site_1: inf"),
        ({"site_0": 0.0, "site_1": 0.0}, "all weights are 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: dict[str, float], words: str) -> None:
    with pytest.raises(FedsamError, match=rf"cannot be weighted[\s\S]*{words}"):
        SiteUpdates(random_updates(0, 2), weights)


def test_no_site_is_refused() -> None:
    with pytest.raises(FedsamError, match="no site"):
        SiteUpdates({}, {})


@pytest.mark.parametrize("change", [{B: torch.zeros(7, 2)}, {A: torch.zeros(3)}, {A: torch.zeros(0, 9), B: torch.zeros(7, 0)}])
@pytest.mark.parametrize("method", PAIRED)
def test_factors_that_do_not_fit_each_other_are_refused(method: str, change: dict[str, torch.Tensor]) -> None:
    updates = {site: tensors | change for site, tensors in random_updates(0, 2).items()}
    with pytest.raises(FedsamError, match="do not fit each other"):
        aggregated(method, updates, random_weights(0, 2))


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(FedsamError, match=r"unknown LoRA method[\s\S]*median[\s\S]*flexlora"):
        aggregated("median", random_updates(0, 1), random_weights(0, 1))
