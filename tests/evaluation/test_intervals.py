"""Bootstrap intervals: the rule of the means, known cases, coverage, pairing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.evaluation.intervals import Interval, bootstrap_means, paired_difference, site_means, where_both
from fedsam_pipeline.evaluation.summary import combine_sites, summarize_site

FEW = 400


def test_the_means_follow_the_rule_of_summaries() -> None:
    generator = np.random.default_rng(1)
    tables = generator.integers(0, 3, (9, 2, 3))  # zeros are frequent: classes absent in both
    sites = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    dice = np.full((9, 2), np.nan)
    weight = 2 * tables[..., 0] + tables[..., 1] + tables[..., 2]
    np.divide(2 * tables[..., 0], weight, out=dice, where=weight > 0)
    expected = {site: summarize_site([table for table, of in zip(tables, sites, strict=True) if of == site]) for site in "abc"}
    found = site_means(dice[None], sites)
    assert found.sites == ("a", "b", "c")
    np.testing.assert_allclose(found.by_site[0], [expected[site].dice for site in "abc"])
    assert found.mean[0] == pytest.approx(combine_sites(expected).dice)


def test_equal_cases_leave_no_doubt() -> None:
    values = np.full((1, 6, 2), 0.8)
    draws = bootstrap_means(values, list("aabbbb"), resamples=FEW)
    interval = Interval.of_draws(0.8, draws.mean[:, 0])
    assert [interval.low, interval.high] == pytest.approx([0.8, 0.8])


def test_cases_are_drawn_within_their_site() -> None:
    """Two sites whose cases do not differ within: drawing over all cases would move the mean, drawing within sites does not."""
    values = np.array([0.2] * 5 + [0.9] * 3)[None, :, None]
    draws = bootstrap_means(values, ["a"] * 5 + ["b"] * 3, resamples=FEW)
    assert draws.by_site.shape == (FEW, 1, 2)
    np.testing.assert_allclose(draws.mean, 0.55)


def test_identical_methods_differ_by_exactly_nothing() -> None:
    values = np.random.default_rng(0).random((2, 7, 3))
    assert paired_difference(values, values.copy(), list("aaabbbb"), resamples=FEW) == Interval(0.0, 0.0, 0.0)


@given(st.integers(0, 2**32 - 1), st.floats(-0.3, 0.3))
@settings(max_examples=30)
def test_a_constant_difference_is_known_without_doubt_and_turns_its_sign(seed: int, shift: float) -> None:
    values = np.random.default_rng(seed).random((1, 8, 2))
    sites = list("abcabcab")
    found = paired_difference(values + shift, values, sites, resamples=50)
    turned = paired_difference(values, values + shift, sites, resamples=50)
    np.testing.assert_allclose([found.value, found.low, found.high], shift, atol=1e-12)
    np.testing.assert_allclose([turned.value, turned.low, turned.high], -shift, atol=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    sites = ["a"] * 20 + ["b"] * 20
    hits = 0
    for trial in range(200):
        cases = generator.normal([0.8] * 20 + [0.6] * 20, 0.1)[None, :, None]
        draws = bootstrap_means(cases, sites, resamples=300, seed=trial)
        interval = Interval.of_draws(float(site_means(cases, sites).mean[0]), draws.mean[:, 0])
        hits += interval.low <= 0.7 <= interval.high
    assert 0.88 <= hits / 200 <= 0.99


def test_more_cases_make_it_narrower_and_pairing_too() -> None:
    generator = np.random.default_rng(5)
    easy = generator.random((1, 80, 1))  # how easy a case is weighs more than the method
    better = easy + 0.02 + 0.01 * generator.random((1, 80, 1))
    sites = ["a"] * 80

    def width(values: np.ndarray, of: list[str]) -> float:
        interval = Interval.of_draws(0.0, bootstrap_means(values, of, resamples=FEW).mean[:, 0])
        return interval.high - interval.low

    assert width(easy, sites) < width(easy[:, :10], sites[:10])
    paired = paired_difference(better, easy, sites, resamples=FEW)
    assert 0 < paired.low < paired.value < paired.high
    assert paired.high - paired.low < 0.2 * width(easy, sites)


def test_seeds_of_a_method_are_averaged() -> None:
    values = np.zeros((2, 4, 1))
    values[0], values[1] = 0.4, 0.8
    assert paired_difference(values, np.full((1, 4, 1), 0.5), list("aabb"), resamples=50).value == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_draws() -> None:
    values = np.random.default_rng(0).random((2, 6, 2))
    one, same, other = (bootstrap_means(values, list("aaabbb"), resamples=30, seed=seed).by_site for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_absent_values_are_left_out_and_a_site_without_any_has_no_mean() -> None:
    values = np.array([[[0.5, np.nan], [0.7, np.nan], [np.nan, np.nan]]])
    found = site_means(values, ["a", "a", "b"])
    assert found.by_site[0, 0] == pytest.approx(0.6)
    assert np.isnan(found.by_site[0, 1])
    assert found.mean[0] == pytest.approx(0.6)
    assert found.extreme(largest=True)[0] == found.extreme(largest=False)[0] == pytest.approx(0.6)
    nothing = site_means(np.full((1, 2, 1), np.nan), ["a", "b"])
    assert np.isnan(nothing.extreme(largest=True)[0])
    assert Interval.of_draws(float(nothing.mean[0]), np.array([0.1])).to_dict() == {"value": None, "low": None, "high": None}


def test_a_distance_that_one_method_lacks_is_left_out_of_both() -> None:
    method, reference = np.array([[[1.0], [np.nan]]]), np.array([[[2.0], [3.0]]])
    one, other = where_both(method, reference)
    np.testing.assert_array_equal(one, [[[1.0], [np.nan]]])
    np.testing.assert_array_equal(other, [[[2.0], [np.nan]]])


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match="0 cases"):
        bootstrap_means(np.zeros((1, 0, 1)), [])
