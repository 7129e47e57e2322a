"""Grids: a value comes back within the promised error; statistics of counts equal those of the list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.planning import grids
from fedsam_pipeline.specs.fingerprint import Bin, Counts

LIST = st.lists(st.integers(-50, 50), min_size=1, max_size=40)


def counted(values: list[int]) -> Counts:
    return grids.exact_counts({value: values.count(value) for value in values})


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


def test_a_bin_is_taken_at_its_centre() -> None:
    counts = {Bin(4, 4): 1, Bin(0, 7): 1, Bin(8, 11): 1}
    assert [grids.quantile(counts, q) for q in (0, 0.5, 1)] == [3.5, 4, 9.5]
    assert grids.quantile_range(counts, 0.5) == (4, 7)


@given(LIST, st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=40, max_size=40), st.floats(0, 1))
def test_the_range_holds_the_quantile_that_bins_hide(values: list[int], margins: list[tuple[int, int]], q: float) -> None:
    bins = [Bin(value - below, value + above) for value, (below, above) in zip(values, margins, strict=False)]
    counts = {each: bins.count(each) for each in bins}
    low, high = grids.quantile_range(counts, q)
    assert low - 1e-9 <= np.quantile(values, q) <= high + 1e-9
    assert low - 1e-9 <= grids.quantile(counts, q) <= high + 1e-9


@given(LIST, st.floats(0, 1))
def test_single_positions_leave_no_range(values: list[int], q: float) -> None:
    assert grids.quantile_range(counted(values), q) == (grids.quantile(counted(values), q),) * 2


@pytest.mark.parametrize("tree", [grids.LINEAR_TREE, grids.LOG_TREE, grids.INTENSITY_TREE])
def test_bins_of_a_tree_are_made_of_two_halves(tree: grids.Tree) -> None:
    for position in (tree.lowest, 0, 1, 511, 512, 2000):
        assert tree.bin(tree.node(position, 0)) == (position, position)
        for level in range(1, tree.depth + 1):
            level, index = tree.node(position, level)
            whole, lower, upper = (tree.bin(node) for node in ((level, index), (level - 1, 2 * index), (level - 1, 2 * index + 1)))
            assert whole.low <= position <= whole.high == upper.high
            if lower.high >= tree.lowest:
                assert (whole.low, upper.low) == (lower.low, lower.high + 1)


def test_values_around_zero_and_powers_of_two_share_narrow_bins() -> None:
    for tree, middle in ((grids.LINEAR_TREE, 512), (grids.LINEAR_TREE, 1024), (grids.LOG_TREE, 0), (grids.INTENSITY_TREE, 0)):
        assert tree.node(middle - 1, 2) == tree.node(middle, 2) or tree.node(middle - 1, 1) == tree.node(middle, 1)


def test_a_position_outside_the_tree() -> None:
    for tree, position in ((grids.LINEAR_TREE, -1), (grids.LOG_TREE, -5000), (grids.INTENSITY_TREE, 50_000)):
        with pytest.raises(ValueError, match=f"position {position} lies outside"):
            tree.node(position, 0)


def test_the_trees_hold_all_that_single_precision_can() -> None:
    limits = grids.intensity_positions(np.array([np.finfo(np.float32).min, np.finfo(np.float32).max])).tolist()
    assert all(grids.INTENSITY_TREE.node(position, 0) for position in limits)
    root = grids.INTENSITY_TREE.bin((grids.INTENSITY_TREE.depth, 0))
    assert all(np.isfinite(grids.intensity_value(position)) for position in root)
    assert all(np.isfinite(grids.log_value(position)) for position in grids.LOG_TREE.bin((grids.LOG_TREE.depth, 0)))


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
