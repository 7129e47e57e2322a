"""Merging: exact counts, moments to 1e-12, whatever the grouping and order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.planning.merge import merge_fingerprints, merge_moments, pool_fingerprints
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Fingerprint, IntensityMoments
from tests.planning.fingerprints import fingerprint_of, random_case, random_site

MOMENTS = st.builds(IntensityMoments, weight=st.integers(1, 500), mean=st.floats(-1e3, 1e6), m2=st.floats(1e-3, 1e12))


def same(a: Fingerprint, b: Fingerprint) -> bool:
    """Equal counts, moments within 1e-12."""
    for ours, theirs in zip(a.channels, b.channels, strict=True):
        assert ours.moments.weight == theirs.moments.weight
        assert ours.moments.mean == pytest.approx(theirs.moments.mean, rel=1e-12)
        assert ours.moments.m2 == pytest.approx(theirs.moments.m2, rel=1e-12)
    histograms = [[channel.histogram for channel in part.channels] for part in (a, b)]
    silent = {"channels", "num_sites"}
    return histograms[0] == histograms[1] and a.model_dump(exclude=silent) == b.model_dump(exclude=silent)


@given(MOMENTS, MOMENTS, MOMENTS)
def test_moments_are_associative_and_commutative(a: IntensityMoments, b: IntensityMoments, c: IntensityMoments) -> None:
    left, right = merge_moments(merge_moments(a, b), c), merge_moments(a, merge_moments(b, c))
    scale = max(abs(part.mean) for part in (a, b, c)) or 1.0
    assert left.weight == right.weight
    assert left.mean == pytest.approx(right.mean, rel=1e-12, abs=1e-12 * scale)
    assert left.m2 == pytest.approx(right.m2, rel=1e-12, abs=1e-12 * scale**2)
    assert merge_moments(a, b).m2 == pytest.approx(merge_moments(b, a).m2, rel=1e-12)


def test_moments_of_nothing_change_nothing() -> None:
    some = IntensityMoments(weight=3, mean=5.0, m2=2.0)
    assert merge_moments(some, IntensityMoments()) == some == merge_moments(IntensityMoments(), some)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=4, max_size=8))
def test_merged_equals_pooled_however_cases_are_spread(owner: list[int]) -> None:
    cases = [random_case(seed, scale=10.0 ** (seed % 6)) for seed in range(len(owner))]
    sites = {f"site_{site}": [case for case, mine in zip(cases, owner, strict=True) if mine == site] for site in sorted(set(owner))}
    merged = merge_fingerprints({site: fingerprint_of(members) for site, members in sites.items()})
    assert same(merged, fingerprint_of(cases))
    assert merged.num_sites == len(sites)


def test_arrival_order_does_not_matter() -> None:
    a, b, c = random_site(range(3)), random_site(range(3, 5)), random_site(range(5, 9))
    assert merge_fingerprints({"a": a, "b": b, "c": c}).sha256() == merge_fingerprints({"c": c, "a": a, "b": b}).sha256()


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(4)), st.integers(1, 3), st.integers(2, 5))
def test_coarsened_counts_are_added_exactly_in_any_order_and_grouping(order: list[int], cut: int, floor: int) -> None:
    sites = [fingerprint_of([random_case(9 * site + seed) for seed in range(5 + site)], floor) for site in range(4)]
    mixed = [sites[number] for number in order]
    grouped = pool_fingerprints([pool_fingerprints(mixed[:cut]), pool_fingerprints(mixed[cut:])])
    assert same(grouped, pool_fingerprints(sites))
    assert grouped.privacy_floor == floor
    assert grouped.num_sites == 4


def test_a_class_that_no_site_releases_is_left_out() -> None:
    lesions = {site: fingerprint_of([random_case(seed) for seed in range(first, 10)], floor=4) for site, first in (("a", 2), ("b", 5))}
    assert ["lesion" in fingerprint.classes for fingerprint in lesions.values()] == [True, False]
    assert merge_fingerprints(lesions).classes["lesion"] == lesions["a"].classes["lesion"]
    assert "lesion" not in merge_fingerprints({"b": lesions["b"]}).classes


def test_every_case_weighs_the_same() -> None:
    merged = merge_fingerprints({"a": random_site(range(3)), "b": random_site(range(3, 4))})
    assert merged.channels[0].moments.weight == merged.num_cases == 4
    assert sum(merged.channels[0].histogram.values()) == 4 * CASE_MASS
    means = [random_case(seed).channels[0].mean for seed in range(4)]
    assert merged.channels[0].moments.mean == pytest.approx(sum(means) / 4, rel=1e-12)


def test_nothing_to_merge() -> None:
    with pytest.raises(FedsamError, match="no fingerprint to merge"):
        merge_fingerprints({})


@pytest.mark.parametrize(
    ("change", "word"),
    [({"dataset_name": "Dataset002_Other"}, "dataset"), ({"labels": {"background": 0, "organ": 2, "lesion": 1}}, "labels")],
)
def test_sites_that_disagree(change: dict[str, object], word: str) -> None:
    site = random_site(range(2))
    with pytest.raises(FedsamError, match=f"sites a and b disagree on the {word}"):
        merge_fingerprints({"a": site, "b": site.model_copy(update=change)})


def test_sites_with_other_channels() -> None:
    with pytest.raises(FedsamError, match="disagree on the channels"):
        merge_fingerprints({"a": random_site(range(2)), "b": random_site(range(2), channels=2)})
