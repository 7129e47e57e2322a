"""A run that continues equals one that was never interrupted, through a file."""

from pathlib import Path

import pytest
import torch
from flwr.serverapp.strategy import FedAvg
from torch import Tensor

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.checkpoints import CheckpointSeries
from fedsam_pipeline.federation.strategy_settings import STRATEGIES
from fedsam_pipeline.flower.strategies import LoraFedAvg
from fedsam_pipeline.flower.strategy_state import load_strategy_state, strategy_state
from fedsam_pipeline.model.lora_residuals import split_residuals
from tests.federation.lora_aggregation.random_updates import random_updates
from tests.flower.replies import a_round, a_strategy

SITES, ROUNDS = 7, 4
EVERY = [*((name, None) for name in STRATEGIES), ("fedavg", "fedex"), ("fedavg", "fedrot"), ("fedprox", "flexlora")]


def rounds(strategy: FedAvg, tensors: dict[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    for number in range(first, last + 1):
        moves = random_updates(number, SITES)
        updates = {site: {name: tensors[name] + 0.1 * move[name] for name in move} for site, move in moves.items()}
        tensors, _ = split_residuals(a_round(strategy, tensors, updates, round_number=number))
    return tensors


@pytest.mark.parametrize(("name", "method"), EVERY)
def test_resume_equals_uninterrupted(tmp_path: Path, name: str, method: str | None) -> None:
    start = random_updates(99, 1)["site_0"]
    uninterrupted = a_strategy(name, SITES, lora_method=method)
    whole = rounds(uninterrupted, start, 1, ROUNDS)
    first = a_strategy(name, SITES, lora_method=method)
    half = rounds(first, start, 1, 2)
    series = CheckpointSeries(tmp_path, "strategy_")
    series.save(2, strategy_state(first))
    second = a_strategy(name, SITES, lora_method=method)
    load_strategy_state(second, series.load(2))
    continued = rounds(second, half, 3, ROUNDS)
    assert all(torch.equal(continued[key], whole[key]) for key in whole)
    ended, expected = strategy_state(second), strategy_state(uninterrupted)
    assert ended.keys() == expected.keys() and all(torch.equal(ended[key], expected[key]) for key in ended)


@pytest.mark.parametrize("name", ["fedavgm", "fedadam", "fedyogi"])
def test_without_the_state_the_course_would_differ(name: str) -> None:
    start = random_updates(99, 1)["site_0"]
    whole = rounds(a_strategy(name, SITES), start, 1, ROUNDS)
    continued = rounds(a_strategy(name, SITES), rounds(a_strategy(name, SITES), start, 1, 2), 3, ROUNDS)
    assert not all(torch.allclose(continued[key], whole[key]) for key in whole)


def test_the_state_is_a_copy() -> None:
    strategy = a_strategy("fedadam", SITES)
    assert strategy_state(strategy) == {}
    tensors = rounds(strategy, random_updates(99, 1)["site_0"], 1, 1)
    state = strategy_state(strategy)
    assert {key.split("/")[0] for key in state} == {"m", "v"} and len(state) == 2 * len(tensors)
    before = {key: value.clone() for key, value in state.items()}
    rounds(strategy, tensors, 2, 2)
    assert all(torch.equal(state[key], before[key]) for key in state)


@pytest.mark.parametrize(
    ("name", "method", "state", "words"),
    [
        ("fedadam", None, {}, r"found:    no state[\s\S]*m, v"),
        ("fedavgm", None, {"m/w": torch.zeros(1)}, r"found:    m\n[\s\S]*momentum"),
        ("fedavg", None, {"momentum/w": torch.zeros(1)}, r"found:    momentum\n[\s\S]*no state"),
        ("fedavg", "flexlora", {"residual/w": torch.zeros(1)}, r"found:    residual\n[\s\S]*no state"),
    ],
)
def test_a_state_of_another_strategy_is_refused(name: str, method: str | None, state: dict[str, Tensor], words: str) -> None:
    with pytest.raises(FedsamError, match=rf"does not fit this run[\s\S]*{words}"):
        load_strategy_state(a_strategy(name, SITES, lora_method=method), state)


def test_one_site_of_fedex_leaves_no_residual() -> None:
    strategy = a_strategy("fedavg", 1, lora_method="fedex")
    updates = random_updates(1, 1)
    a_round(strategy, random_updates(99, 1)["site_0"], updates)
    assert strategy_state(strategy) == {}
    load_strategy_state(strategy, {})
    assert isinstance(strategy, LoraFedAvg) and strategy.residuals == {}
