"""Weights of the sites."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.federation.weighting import site_weights

CASES = {"site_b": 10, "site_a": 30, "site_c": 20}


def test_by_size_and_equal() -> None:
    assert list(site_weights("size", CASES).items()) == [("site_a", 30.0), ("site_b", 10.0), ("site_c", 20.0)]
    assert site_weights("equal", CASES) == {"site_a": 1.0, "site_b": 1.0, "site_c": 1.0}


def test_by_validation_the_badly_served_count_more() -> None:
    weights = site_weights("validation", CASES, {"site_a": 0.9, "site_b": 0.5, "site_c": 0.9})
    assert weights == pytest.approx({"site_a": 3.0, "site_b": 5.0, "site_c": 2.0})
    strong = site_weights("validation", CASES, {"site_a": 0.9, "site_b": 0.5, "site_c": 0.9}, fairness=2.0)
    assert strong == pytest.approx({"site_a": 0.3, "site_b": 2.5, "site_c": 0.2})


def test_a_site_without_a_score_has_the_usual_loss() -> None:
    for missing in ({}, {"site_c": math.nan}):
        weights = site_weights("validation", CASES, {"site_a": 0.8, "site_b": 0.6, **missing})
        assert weights == pytest.approx({"site_a": 6.0, "site_b": 4.0, "site_c": 6.0})


@pytest.mark.parametrize("dice", [None, {}, {"site_a": math.nan}, {"elsewhere": 0.5}])
def test_before_any_score_sites_weigh_by_size(dice: dict[str, float] | None) -> None:
    assert site_weights("validation", CASES, dice) == site_weights("size", CASES)


def test_a_perfect_site_still_counts() -> None:
    assert site_weights("validation", CASES, dict.fromkeys(CASES, 1.0))["site_b"] == pytest.approx(0.1)


@given(st.dictionaries(st.sampled_from(["a", "b", "c"]), st.tuples(st.integers(1, 999), st.floats(0, 1)), min_size=1))
def test_fairness_zero_is_size_and_weights_are_always_positive(drawn: dict[str, tuple[int, float]]) -> None:
    cases, dice = {s: n for s, (n, _) in drawn.items()}, {s: d for s, (_, d) in drawn.items()}
    assert site_weights("validation", cases, dice, fairness=0.0) == site_weights("size", cases)
    assert all(weight > 0 for weight in site_weights("validation", cases, dice).values())


@pytest.mark.parametrize(
    ("weighting", "cases", "dice", "fairness", "words"),
    [
        ("loudest", CASES, None, 1.0, "unknown weighting"),
        ("size", {}, None, 1.0, "no site"),
        ("size", {"site_a": 0}, None, 1.0, "site_a: 0 cases"),
        ("validation", CASES, {"site_a": 1.2}, 1.0, r"site_a: Dice 1\.2"),
        ("validation", CASES, {"site_a": 0.2}, -1.0, r"fairness -1\.0"),
    ],
)
def test_what_cannot_be_weighted(weighting: str, cases: dict[str, int], dice: dict[str, float] | None, fairness: float, words: str) -> None:
    with pytest.raises(FedsamError, match=words):
        site_weights(weighting, cases, dice, fairness)
