"""Methods that are not exact: what each of them does promise."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.lora_aggregation.fedrot import fedrot, nearest_rotation
from fedsam_pipeline.federation.lora_aggregation.flexlora import flexlora
from fedsam_pipeline.federation.lora_aggregation.lora_fair import lora_fair
from fedsam_pipeline.federation.lora_aggregation.naive import naive
from tests.federation.lora_aggregation.random_updates import (
    BIAS,
    A,
    B,
    assert_same_product,
    cohort,
    cohorts,
    mean_product,
    product,
    random_updates,
    random_weights,
)

Drawn = tuple[int, int, int, int, int]


def rotation(seed: int, rank: int) -> torch.Tensor:
    return nearest_rotation(torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))


def test_naive_averaging_loses_the_product_and_the_others_lose_less() -> None:
    updates, weights = random_updates(5, 4), random_weights(5, 4)
    ideal = mean_product(updates, weights)

    def loss(tensors: dict[str, torch.Tensor]) -> float:
        return float((product(tensors) - ideal).norm())

    plain = loss(naive(updates, weights))
    assert plain > 0.5 * float(ideal.norm())
    assert loss(flexlora(updates, weights)) < loss(lora_fair(updates, weights, 0.01)) < plain


@given(cohorts)
def test_flexlora_is_the_best_of_its_rank(drawn: Drawn) -> None:
    updates, weights = cohort(drawn)
    result = flexlora(updates, weights)
    ideal, rank = mean_product(updates, weights), drawn[-1]
    assert result[A].shape == updates["site_0"][A].shape and result[B].shape == updates["site_0"][B].shape
    missed = float(torch.linalg.svdvals(ideal)[rank:].norm())
    assert float((product(result) - ideal).norm()) == pytest.approx(missed, abs=1e-6 * max(1.0, float(ideal.norm())))
    torch.testing.assert_close(result[A].norm(), result[B].norm(), rtol=1e-4, atol=1e-4)  # balanced


@given(st.integers(0, 1000))
def test_flexlora_is_exact_where_the_rank_suffices(seed: int) -> None:
    updates, weights = random_updates(seed, 3, rank=2), random_weights(seed, 3)
    assert_same_product(product(flexlora({"site_0": updates["site_0"]}, weights)), {"site_0": updates["site_0"]}, {"site_0": 1.0})
    for tensors in updates.values():
        tensors[A] = updates["site_0"][A]
    assert_same_product(product(flexlora(updates, weights)), updates, weights)


def test_flexlora_does_not_depend_on_the_basis_the_sites_are_in() -> None:
    updates, weights = random_updates(2, 3), random_weights(2, 3)
    turned = {
        site: {**tensors, A: (rotation(i, 3).T @ tensors[A].double()).float(), B: (tensors[B].double() @ rotation(i, 3)).float()}
        for i, (site, tensors) in enumerate(updates.items())
    }
    first, second = flexlora(updates, weights), flexlora(turned, weights)
    torch.testing.assert_close(first[A], second[A], rtol=1e-4, atol=1e-4)  # signs are fixed, so the factors themselves agree
    torch.testing.assert_close(first[B], second[B], rtol=1e-4, atol=1e-4)


def test_flexlora_keeps_factors_that_can_learn_while_nothing_is_learned() -> None:
    updates, weights = random_updates(2, 3), random_weights(2, 3)
    for tensors in updates.values():
        tensors[B] = torch.zeros_like(tensors[B])
    result = flexlora(updates, weights)
    assert torch.equal(result[A], naive(updates, weights)[A]) and not result[B].any()


@given(cohorts)
def test_lora_fair_moves_from_the_best_b_for_the_mean_a_to_the_mean_b(drawn: Drawn) -> None:
    updates, weights = cohort(drawn)
    ideal, plain = mean_product(updates, weights), naive(updates, weights)
    steps = [lora_fair(updates, weights, value) for value in (1e-6, 1e-2, 1.0, 1e6)]
    losses = [float((product(step) - ideal).norm()) for step in steps]
    moves = [float((step[B] - plain[B]).norm()) for step in steps]
    slack = 1e-4 * (1 + max(moves))
    assert all(earlier <= later + slack for earlier, later in pairwise(losses))
    assert all(earlier >= later - slack for earlier, later in pairwise(moves))
    assert all(torch.equal(step[A], plain[A]) for step in steps)
    torch.testing.assert_close(steps[-1][B], plain[B], rtol=1e-3, atol=1e-3)


def test_lora_fair_solves_its_own_problem() -> None:
    updates, weights = random_updates(4, 3), random_weights(4, 3)
    result, plain, ideal = lora_fair(updates, weights, 0.1), naive(updates, weights), mean_product(updates, weights)
    a = plain[A].double()
    penalty = 0.1 * float((a @ a.T).trace()) / len(a)

    def objective(b: torch.Tensor) -> float:
        return float((ideal - b @ a).square().sum() + penalty * (b - plain[B].double()).square().sum())

    best = objective(result[B].double())
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        nearby = result[B].double() + 1e-2 * torch.randn(result[B].shape, generator=generator, dtype=torch.float64)
        assert objective(nearby) > best


def test_lora_fair_with_a_zero_a_is_the_mean() -> None:
    updates, weights = random_updates(4, 2), random_weights(4, 2)
    for tensors in updates.values():
        tensors[A] = torch.zeros_like(tensors[A])
    assert torch.equal(lora_fair(updates, weights, 0.01)[B], naive(updates, weights)[B])


@pytest.mark.parametrize("round_number", [1, 2])
def test_fedrot_finds_the_common_factors_behind_rotations(round_number: int) -> None:
    received = random_updates(8, 1)["site_0"]
    weights = random_weights(8, 4)
    updates = {
        site: {
            **received,
            A: (rotation(i, 3).T @ received[A].double()).float(),
            B: (received[B].double() @ rotation(i, 3)).float(),
        }
        for i, site in enumerate(weights)
    }
    result = fedrot(updates, weights, received, round_number, alignment=1.0)
    assert_same_product(product(result), updates, weights)
    torch.testing.assert_close(result[A], received[A], rtol=1e-5, atol=1e-5)
    assert float((product(naive(updates, weights)) - product(received)).norm()) > 0.1 * float(product(received).norm())


@given(cohorts, st.integers(1, 4), st.floats(0, 1))
def test_fedrot_of_one_site_keeps_its_product(drawn: Drawn, round_number: int, alignment: float) -> None:
    updates, _ = cohort((drawn[0], 1, *drawn[2:]))
    received = random_updates(drawn[0] + 1, 1, *drawn[2:])["site_0"]
    result = fedrot(updates, {"site_0": 1.0}, received, round_number, alignment)
    assert_same_product(product(result), updates, {"site_0": 1.0})


@pytest.mark.parametrize("round_number", [1, 2])
def test_fedrot_without_alignment_or_reference_is_naive(round_number: int) -> None:
    updates, weights = random_updates(6, 3), random_weights(6, 3)
    received = {A: torch.zeros(3, 9), B: torch.zeros(7, 3)}
    plain = naive(updates, weights)
    for result in (
        fedrot(updates, weights, random_updates(7, 1)["site_0"], round_number, alignment=0.0),
        fedrot(updates, weights, received, round_number, alignment=1.0),
    ):
        torch.testing.assert_close(result[A], plain[A])
        torch.testing.assert_close(result[B], plain[B])


def test_a_half_turn_taken_half_way_is_still_a_rotation() -> None:
    received = {A: torch.eye(2), B: torch.eye(2), BIAS: torch.zeros(1)}
    updates = {"site_0": {A: -torch.eye(2), B: -torch.eye(2), BIAS: torch.zeros(1)}}
    result = fedrot(updates, {"site_0": 1}, received, 1, alignment=0.5)
    torch.testing.assert_close(product(result), torch.eye(2, dtype=torch.float64))


@given(st.integers(0, 1000), st.integers(1, 5))
def test_nearest_rotation_is_one_and_finds_rotations_again(seed: int, rank: int) -> None:
    matrix = torch.randn(rank, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = nearest_rotation(matrix)
    torch.testing.assert_close(found @ found.T, torch.eye(rank, dtype=torch.float64))
    assert float(torch.linalg.det(found)) == pytest.approx(1)
    torch.testing.assert_close(nearest_rotation(found), found, rtol=0, atol=1e-7)


@pytest.mark.parametrize("received", [{}, {A: torch.zeros(2, 9)}])
def test_fedrot_needs_what_the_server_sent(received: dict[str, torch.Tensor]) -> None:
    with pytest.raises(FedsamError, match=r"does not fit the updates[\s\S]*lora_A_q"):
        fedrot(random_updates(0, 2), random_weights(0, 2), received, 1, 0.5)
