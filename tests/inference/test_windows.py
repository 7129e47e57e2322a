"""Windows: exact coverage for any size, and weights that add up to one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.inference.windows import FLOOR, axis_windows, gaussian_weights, plane_windows, window_starts

SIZES = st.integers(1, 200)
LENGTHS = st.integers(1, 64)
OVERLAPS = st.floats(0, 0.95)


@given(SIZES, LENGTHS, OVERLAPS)
def test_starts_cover_the_axis_from_end_to_end(size: int, length: int, overlap: float) -> None:
    starts = window_starts(size, length, overlap)
    assert starts == sorted(set(starts))
    if size <= length:
        assert starts == [(size - length) // 2]
        return
    assert starts[0] == 0
    assert starts[-1] + length == size
    steps = np.diff(starts)
    assert (steps <= max(1, np.ceil((1 - overlap) * length))).all()
    assert (steps <= length).all(), "a gap between windows"


@given(SIZES, LENGTHS, OVERLAPS)
def test_weights_are_positive_and_add_up_to_one_everywhere(size: int, length: int, overlap: float) -> None:
    total = np.zeros(size)
    for window in axis_windows(size, length, overlap):
        assert (window.weights > 0).all()
        assert window.inside.start >= 0
        assert window.inside.stop <= length
        total[window.covered] += window.weights
        if size >= length:
            assert len(window.weights) == length
    np.testing.assert_allclose(total, 1, atol=1e-6)


@given(st.tuples(st.integers(1, 40), st.integers(1, 40)), st.tuples(st.integers(1, 20), st.integers(1, 20)), OVERLAPS)
def test_plane_weights_add_up_to_one(size: tuple[int, int], window: tuple[int, int], overlap: float) -> None:
    total = np.zeros(size)
    for rows, columns in plane_windows(size, window, overlap):
        total[rows.covered, columns.covered] += rows.weights[:, None] * columns.weights
    np.testing.assert_allclose(total, 1, atol=1e-5)


def test_importance_is_the_gaussian_of_nnunet() -> None:
    weights = gaussian_weights(17)
    assert weights[8] == 1
    assert weights[10] == pytest.approx(np.exp(-0.5 * (2 / (17 / 8)) ** 2))
    assert np.array_equal(weights, weights[::-1])
    assert gaussian_weights(400)[0] == FLOOR
    assert gaussian_weights(1).tolist() == [1]


@pytest.mark.parametrize(("size", "length", "overlap"), [(0, 4, 0.5), (4, 0, 0.5), (4, 4, 1.0), (4, 4, -0.1)])
def test_impossible_windows_are_refused(size: int, length: int, overlap: float) -> None:
    with pytest.raises(ValueError, match="no windows"):
        window_starts(size, length, overlap)
