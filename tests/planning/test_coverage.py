"""What a plan covers, from fingerprints whose cases are known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.planning.coverage import coverage_of
from fedsam_pipeline.planning.grids import intensity_positions
from fedsam_pipeline.planning.merge import merge_fingerprints
from fedsam_pipeline.planning.thresholds import load_thresholds
from fedsam_pipeline.specs.coverage import Interval
from fedsam_pipeline.specs.fingerprint import CASE_MASS, Fingerprint
from tests.planning.fingerprints import fingerprint_of, random_case, stated

RULES = load_thresholds().quality


def position(value: float) -> int:
    return int(intensity_positions(np.array([value]))[0])


def spans_of(fingerprint: Fingerprint) -> tuple[Interval, ...]:
    return coverage_of(fingerprint, RULES).channels[0].spans


def covers(spans: tuple[Interval, ...], value: float) -> bool:
    return any(low <= value <= high for low, high in spans)


def test_ranges_are_those_of_the_cases() -> None:
    spacing = [{800: 4, 1200: 6}, {1000: 10}, {500: 10}]
    found = coverage_of(stated(spacing=spacing, size=(40, 50, 60)), RULES)
    assert found.spacing[0] == pytest.approx((0.7995, 1.2005))
    assert found.spacing[1] == pytest.approx((0.9995, 1.0005))
    assert found.extent[2] == pytest.approx((59.95, 60.05))
    assert (found.num_cases, found.foreground_share) == (10, 1.0)
    assert found.fingerprint_sha256 == stated(spacing=spacing, size=(40, 50, 60)).sha256()


def test_two_scales_are_two_spans_and_what_lies_between_them_is_not_covered() -> None:
    low, high = position(100.0), position(50000.0)
    spans = spans_of(stated(intensities={low: 5 * CASE_MASS, high: 5 * CASE_MASS}))
    assert len(spans) == 2
    assert covers(spans, 100) and covers(spans, 50000)
    assert not any(covers(spans, value) for value in (0.1, 10, 1000, 5000, 1e6, -100))


def test_a_hundredth_of_the_foreground_may_lie_anywhere() -> None:
    rare = CASE_MASS // 20  # 0.5 % of ten cases
    assert len(spans_of(stated(intensities={position(100.0): 10 * CASE_MASS - rare, position(50000.0): rare}))) == 1


def test_gaps_that_few_cases_leave_are_closed() -> None:
    values = [100 * 1.3**step for step in range(8)]
    spans = spans_of(stated(num_cases=8, intensities={position(value): CASE_MASS for value in values}))
    assert len(spans) == 1
    assert covers(spans, 100) and covers(spans, values[-1])


@given(seeds=st.integers(0, 20), scale=st.sampled_from([0.5, 100.0, 30000.0]), floor=st.sampled_from([1, 4]))
@settings(max_examples=12)
def test_planned_cases_are_covered_and_coarsening_only_widens(seeds: int, scale: float, floor: int) -> None:
    cases = [random_case(seed, scale=scale) for seed in range(seeds, seeds + 8)]
    exact, released = (coverage_of(fingerprint_of(cases, each), RULES) for each in (1, floor))
    for axis in range(3):
        for ours, theirs in ((released.spacing, exact.spacing), (released.extent, exact.extent)):
            assert ours[axis][0] <= theirs[axis][0] <= theirs[axis][1] <= ours[axis][1]
    masses = np.concatenate([case.channels[0].masses for case in cases])
    values = np.concatenate([0.01 * np.sinh(case.channels[0].positions * 0.005) for case in cases])
    inside = np.zeros(len(values), bool)
    for low, high in released.channels[0].spans:
        inside |= (values >= low) & (values <= high)
    assert masses[inside].sum() / masses.sum() > 0.95


def test_sites_of_other_scales_are_covered_together_only() -> None:
    sites = {name: fingerprint_of([random_case(seed, scale=scale) for seed in range(6)]) for name, scale in (("a", 10.0), ("b", 1e5))}
    assert not covers(spans_of(sites["a"]), 1e5)
    together = spans_of(merge_fingerprints(sites))
    assert covers(together, 10.0) and covers(together, 1e5)


def test_without_foreground_no_intensity_is_known() -> None:
    found = coverage_of(fingerprint_of([random_case(seed) for seed in range(3)], floor=1), RULES)
    assert math.isclose(found.foreground_share, 1.0)
    few = fingerprint_of([random_case(seed) for seed in range(3)])
    nothing = few.model_copy(
        update={"channels": tuple(c.model_copy(update={"histogram": {}, "moments": type(c.moments)()}) for c in few.channels)}
    )
    found = coverage_of(nothing, RULES)
    assert (found.foreground_share, found.channels[0].spans) == (0.0, ())
