"""Settings of strategies, and combinations that mean nothing."""

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.methods import LORA_METHODS
from fedsam_pipeline.federation.strategy_settings import LORA_STRATEGIES, SETTINGS, STRATEGIES, require_sites, strategy_settings
from fedsam_pipeline.specs.recipe import AggregationRecipe


@pytest.mark.parametrize(
    ("name", "options", "smallest", "words"),
    [
        ("fedavg", {}, 1, r"nothing to aggregate"),
        ("fedmedian", {}, 3, r"plain mean[\s\S]*--strategy fedavg"),
        ("fedtrimmedavg", {}, 5, r"nothing is cut below 5 sites"),
        ("fedtrimmedavg", {"beta": 0.1}, 10, r"nothing is cut below 10 sites"),
        ("fedtrimmedavg", {"beta": 0.4}, 3, r"nothing is cut below 3 sites[\s\S]*--strategy fedavg"),
        ("krum", {}, 5, r"2f \+ 3 = 5"),
        ("krum", {"num_malicious_nodes": 2}, 7, r"2f \+ 3 = 7[\s\S]*fedmedian"),
        ("bulyan", {}, 7, r"4f \+ 3 = 7[\s\S]*krum or fedmedian"),
        ("bulyan", {"num_malicious_nodes": 2}, 11, r"4f \+ 3 = 11"),
    ],
)
def test_the_number_of_sites_a_strategy_needs(name: str, options: dict[str, float], smallest: int, words: str) -> None:
    settings = strategy_settings(name, None, options)
    require_sites(name, smallest, settings)
    with pytest.raises(FedsamError, match=rf"{name} makes no sense with {smallest - 1} sites?: [\s\S]*{words}"):
        require_sites(name, smallest - 1, settings)


@pytest.mark.parametrize(("sites", "beta"), [(4, "0.25"), (3, "0.34")])
def test_the_suggested_beta_is_accepted(sites: int, beta: str) -> None:
    with pytest.raises(FedsamError, match=rf"set beta to {beta} or more"):
        require_sites("fedtrimmedavg", sites, strategy_settings("fedtrimmedavg", None, {}))
    require_sites("fedtrimmedavg", sites, strategy_settings("fedtrimmedavg", None, {"beta": float(beta)}))


@pytest.mark.parametrize("name", STRATEGIES)
def test_lora_methods_go_with_averaging_only(name: str) -> None:
    for method in LORA_METHODS:
        if name in LORA_STRATEGIES:
            strategy_settings(name, method, {})
        else:
            with pytest.raises(FedsamError, match=rf"{name} (picks|keeps)[\s\S]*LoRA method {method}"):
                strategy_settings(name, method, {})


@pytest.mark.parametrize(
    ("name", "method", "options", "words"),
    [
        ("fedsgd", None, {}, r"unknown strategy[\s\S]*fedsgd[\s\S]*fedyogi"),
        ("fedavg", "mean", {}, r"unknown LoRA method[\s\S]*mean[\s\S]*fedrot"),
        ("fedavg", None, {"mu": 1}, r"settings that fedavg cannot take[\s\S]*mu = 1[\s\S]*no settings"),
        ("fedprox", None, {"proximal_mu": 0}, r"proximal_mu = 0 \(a number above 0\)"),
        ("fedavgm", None, {"server_momentum": 1}, r"server_momentum = 1"),
        ("fedavgm", None, {"server_momentum": 0}, r"server_momentum = 0"),
        ("fedadam", None, {"eta": float("nan"), "beta_2": 1, "lr": 1}, r"lr = 1; eta = nan[^;]*; beta_2 = 1"),
        ("fedyogi", None, {"tau": -1}, r"tau = -1"),
        ("fedtrimmedavg", None, {"beta": 0.5}, r"beta = 0\.5"),
        ("krum", None, {"num_malicious_nodes": 0}, r"num_malicious_nodes = 0"),
        ("krum", None, {"num_malicious_nodes": 1.5}, r"whole number"),
        ("fedavg", "lora_fair", {"regularization": 0}, r"regularization = 0"),
        ("fedavg", "fedrot", {"alignment": 1.1}, r"alignment = 1\.1"),
        ("fedavg", "naive", {"alignment": 0.5}, r"alignment = 0\.5"),
    ],
)
def test_settings_that_cannot_be(name: str, method: str | None, options: dict[str, float], words: str) -> None:
    with pytest.raises(FedsamError, match=words):
        strategy_settings(name, method, options)


def test_every_strategy_has_its_settings() -> None:
    assert tuple(SETTINGS) == STRATEGIES
    assert AggregationRecipe(strategy="fedavg", weighting="size").options == {}


def test_the_users_settings_stand_over_the_defaults() -> None:
    settings = strategy_settings("fedadam", None, {"eta": 0.5})
    assert settings["eta"] == 0.5 and settings["beta_1"] == 0.9
    both = strategy_settings("fedprox", "fedrot", {"alignment": 1})
    assert both == {"proximal_mu": 0.01, "alignment": 1.0}
