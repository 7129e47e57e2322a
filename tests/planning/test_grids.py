"""Grids: a value comes back within the promised error; statistics of counts equal those of the list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.planning import grids

LIST = st.lists(st.integers(-50, 50), min_size=1, max_size=40)


def counted(values: list[int]) -> dict[int, int]:
    return {value: values.count(value) for value in values}


@given(st.floats(-2e6, 2e6))
def test_intensity_comes_back_within_half_a_percent_or_one_unit(value: float) -> None:
    position = int(grids.intensity_positions(np.array([value]))[0])
    assert abs(grids.intensity_value(position) - value) <= max(0.0026 * abs(value), 3e-5)


def test_intensity_grid_is_odd_and_zero_is_zero() -> None:
    assert grids.intensity_positions(np.array([-7.0, 0.0, 7.0])).tolist() == [-1449, 0, 1449]
    assert grids.intensity_value(0) == 0


@given(st.floats(1e-3, 1e7))
def test_log_grid_knows_a_value_to_one_percent(value: float) -> None:
    assert grids.log_value(grids.log_position(value)) == pytest.approx(value, rel=0.0101)


@given(st.floats(0.001, 1e4))
def test_linear_grid(value: float) -> None:
    assert grids.linear_value(grids.linear_position(value, grids.SPACING_STEP), grids.SPACING_STEP) == pytest.approx(value, abs=0.00051)


def test_a_positive_length_never_becomes_zero() -> None:
    assert grids.linear_position(1e-9, grids.SPACING_STEP) == 1
    assert grids.linear_position(0.0, grids.FRACTION_STEP) == 0
    assert grids.linear_value(859, grids.SPACING_STEP) == 0.859


@given(LIST, st.floats(0, 1))
def test_quantile_is_numpys(values: list[int], q: float) -> None:
    assert grids.quantile(counted(values), q) == pytest.approx(np.quantile(values, q), abs=1e-9)


def test_quantile_of_nothing() -> None:
    with pytest.raises(ValueError, match="no counts"):
        grids.quantile({}, 0.5)


@given(LIST, LIST)
def test_adding_counts_is_counting_the_joined_list(a: list[int], b: list[int]) -> None:
    assert grids.add_counts([counted(a), counted(b)]) == counted(a + b)


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=50))
def test_distribute_keeps_the_mass_and_the_shares(counts: list[int]) -> None:
    masses = grids.distribute(np.array(counts), 10**9)
    assert sum(masses) == 10**9
    assert all(abs(mass - 10**9 * count / sum(counts)) <= 1 for mass, count in zip(masses, counts, strict=True))
