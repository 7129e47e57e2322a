"""Every strategy on real Flower objects: what it computes, in which type, and what it survives."""

import pytest
import torch
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.methods import LORA_METHODS
from fedsam_pipeline.federation.strategy_settings import STRATEGIES, streams
from fedsam_pipeline.federation.streaming import WeightedMean
from fedsam_pipeline.flower.messages import CONFIG, PAYLOAD, PROXIMAL_MU
from fedsam_pipeline.flower.strategies import LoraFedAvg
from tests.federation.lora_aggregation.random_updates import BIAS, A, B, random_updates, random_weights
from tests.flower.replies import a_round, a_strategy, aggregated, sent

SITES = 7  # enough for every strategy


def values(*numbers: float) -> dict[str, dict[str, Tensor]]:
    """One value a site."""
    return {f"site_{i}": {"w": torch.tensor([number])} for i, number in enumerate(numbers)}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_round_goes_to_all_sites_and_comes_back_float32_with_all_names(name: str) -> None:
    strategy = a_strategy(name, SITES)
    received, updates = random_updates(9, 1)["site_0"], random_updates(1, SITES)
    messages = sent(strategy, received, 1, SITES)
    assert len(messages) == SITES and set(messages[0].content) == {PAYLOAD, CONFIG}
    result = aggregated(strategy, updates, None, 1)
    assert {key: value.shape for key, value in result.items()} == {key: value.shape for key, value in received.items()}
    assert all(torch.isfinite(value).all() for value in result.values())


@pytest.mark.parametrize("name", STRATEGIES)
def test_sites_that_changed_nothing_change_nothing(name: str) -> None:
    received = random_updates(9, 1)["site_0"]
    result = a_round(a_strategy(name, SITES), received, {f"site_{i}": received for i in range(SITES)})
    for key in received:
        torch.testing.assert_close(result[key], received[key])


def test_fedavg_weighs_sites() -> None:
    result = a_round(a_strategy("fedavg", 2), {"w": torch.zeros(1)}, values(1.0, 4.0), {"site_0": 2.0, "site_1": 1.0})
    assert result["w"].item() == pytest.approx(2)


def test_fedprox_tells_the_sites_its_mu() -> None:
    messages = sent(a_strategy("fedprox", 2, {"proximal_mu": 0.3}), {"w": torch.zeros(1)}, 1, 2)
    assert messages[0].content.config_records[CONFIG][PROXIMAL_MU] == 0.3


def test_fedavgm_builds_up_speed() -> None:
    strategy = a_strategy("fedavgm", 2, {"server_momentum": 0.5})
    current, positions = torch.zeros(1), []
    for round_number in (1, 2, 3):
        current = a_round(strategy, {"w": current}, values(*[current.item() + 1] * 2), round_number=round_number)["w"]
        positions.append(current.item())
    assert positions == pytest.approx([1, 2.5, 4.25])


def test_fedavgm_does_a_round_again_from_what_it_sent() -> None:
    strategy = a_strategy("fedavgm", 2)
    a_round(strategy, {"w": torch.zeros(1)}, values(5.0, 5.0))
    sent(strategy, {"w": torch.tensor([1.0])}, 2, 2)  # the run was taken back to another model
    strategy.momentum_vector = None  # type: ignore[attr-defined]
    assert aggregated(strategy, values(2.0, 2.0), None, 2)["w"].item() == pytest.approx(2)


@pytest.mark.parametrize("name", ["fedadam", "fedyogi"])
@pytest.mark.parametrize("step", [1e-4, 1.0, 100.0])
def test_adaptive_strategies_move_no_value_by_more_than_eta(name: str, step: float) -> None:
    moved = a_round(a_strategy(name, 2), {"w": torch.zeros(1)}, values(step, step))["w"].item()
    assert 0 < moved <= 0.01


@pytest.mark.parametrize("name", ["fedmedian", "fedtrimmedavg", "krum", "bulyan"])
def test_robust_strategies_withstand_one_site_gone_wild(name: str) -> None:
    honest = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02]
    result = a_round(a_strategy(name, SITES), {"w": torch.zeros(1)}, values(*honest, 1e6))
    assert 0.9 <= result["w"].item() <= 1.1


@pytest.mark.parametrize("best", range(5))
def test_krum_sees_small_differences_between_large_values(best: int) -> None:
    received, generator = torch.full((2000,), 300.0), torch.Generator().manual_seed(0)
    spread = {f"site_{i}": 2e-3 if i == best else 3e-2 for i in range(5)}  # |x|^2 is 2e8: in float32 all of these are equally far
    updates = {site: {"w": received + size * torch.randn(2000, generator=generator)} for site, size in spread.items()}
    chosen = a_round(a_strategy("krum", 5), {"w": received}, updates)["w"]
    torch.testing.assert_close(chosen, updates[f"site_{best}"]["w"], rtol=0, atol=0)


def test_krum_takes_one_site_and_trimming_cuts_both_ends() -> None:
    numbers = [1.0, 2.0, 3.0, 4.0, 50.0]
    assert a_round(a_strategy("krum", 5), {"w": torch.zeros(1)}, values(*numbers))["w"].item() in numbers[1:3]
    trimmed = a_round(a_strategy("fedtrimmedavg", 5), {"w": torch.zeros(1)}, values(*numbers))
    assert trimmed["w"].item() == pytest.approx(3)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
@pytest.mark.parametrize("method", LORA_METHODS)
def test_every_lora_method_is_a_strategy(name: str, method: str) -> None:
    strategy = a_strategy(name, 3, lora_method=method)
    received = random_updates(9, 1)["site_0"]
    updates = random_updates(2, 3)
    for tensors in updates.values():
        tensors[A] = received[A]
    weights = random_weights(2, 3)
    messages = sent(strategy, received, 1, 3)
    assert (PROXIMAL_MU in messages[0].content.config_records[CONFIG]) == (name == "fedprox")
    result = aggregated(strategy, updates, weights, 1)
    assert received.keys() <= result.keys()
    expected = sum(weights[site] * tensors[BIAS].double() for site, tensors in updates.items()) / sum(weights.values())
    torch.testing.assert_close(result[BIAS], expected.float())  # type: ignore[union-attr]


def test_options_reach_the_lora_method() -> None:
    received, updates = random_updates(9, 1)["site_0"], random_updates(2, 3)
    results = [a_round(a_strategy("fedavg", 3, {"regularization": value}, "lora_fair"), received, updates)[B] for value in (1e-3, 1e3)]
    assert not torch.allclose(results[0], results[1])


def test_frozen_factors_that_stay_at_home_are_those_that_were_sent() -> None:
    received, updates = random_updates(9, 1)["site_0"], random_updates(2, 3)
    halves = {site: {name: value for name, value in tensors.items() if name != A} for site, tensors in updates.items()}
    result = a_round(a_strategy("fedavg", 3, lora_method="ffa"), received, halves)
    assert torch.equal(result[A], received[A]) and not torch.equal(result[B], received[B])


def test_fedex_adds_up_what_was_folded_and_does_not_send_it_twice() -> None:
    strategy = a_strategy("fedavg", 3, lora_method="fedex")
    assert isinstance(strategy, LoraFedAvg) and not strategy.residuals
    first = a_round(strategy, random_updates(9, 1)["site_0"], random_updates(1, 3))
    second = a_round(strategy, first, random_updates(2, 3), round_number=2)
    residual = "encoder.attn.qkv.residual_B_q"
    assert first[residual].shape == second[residual].shape == (7, 6) and not torch.equal(first[residual], second[residual])
    assert strategy.residuals[residual].shape == (7, 7)  # two rounds of 6, no more than the weight's own rank


def test_a_site_whose_factors_differ_is_named() -> None:
    updates = random_updates(2, 3)
    updates["site_1"] |= {A: torch.zeros(2, 9), B: torch.zeros(7, 2)}
    with pytest.raises(FedsamError, match=r"two sites send different tensors[\s\S]*site_1"):
        a_round(a_strategy("fedavg", 3, lora_method="flexlora"), random_updates(9, 1)["site_0"], updates)


@pytest.mark.parametrize(("name", "method"), [*((name, None) for name in STRATEGIES), *(("fedavg", method) for method in LORA_METHODS)])
def test_strategies_that_stream_take_the_running_mean_for_all_replies(name: str, method: str | None) -> None:
    received, updates, weights = random_updates(9, 1)["site_0"], random_updates(2, SITES), random_weights(2, SITES)
    for tensors in updates.values():
        tensors[A] = received[A]
    mean = WeightedMean()
    for site, tensors in updates.items():
        mean.add(tensors, weights[site])
    whole, streamed = (a_strategy(name, SITES, lora_method=method) for _ in range(2))
    expected = a_round(whole, received, updates, weights)
    sent(streamed, received, 1, SITES)
    if streams(name, method):
        result = aggregated(streamed, {"mean": mean.result()}, None, 1)
        for key in expected:
            torch.testing.assert_close(result[key], expected[key], rtol=1e-5, atol=1e-6)
    else:
        assert name in ("fedmedian", "fedtrimmedavg", "krum", "bulyan") or method in ("flexlora", "fedex", "lora_fair", "fedrot")


def test_no_reply_gives_no_aggregate() -> None:
    for method in (None, "flexlora"):
        assert a_strategy("fedavg", 2, lora_method=method).aggregate_train(1, []) == (None, None)
