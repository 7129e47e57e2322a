"""Lesions by hand, and the matching against a brute force over all assignments."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import label

from fedsam_pipeline.evaluation.lesions import LesionCounts, count_lesions


def _line(*runs: tuple[int, int], length: int = 40) -> NDArray[np.bool_]:
    mask = np.zeros((1, 1, length), bool)
    for start, stop in runs:
        mask[..., start:stop] = True
    return mask


def test_found_invented_and_missed() -> None:
    found = count_lesions(_line((0, 4), (10, 14), (20, 24)), _line((1, 5), (30, 34)))
    assert found == LesionCounts(true_positives=1, false_positives=1, false_negatives=2)
    assert found.f1 == pytest.approx(2 / 5)


def test_one_component_over_several_lesions_finds_one() -> None:
    assert count_lesions(_line((0, 4), (6, 10), (12, 16)), _line((0, 16))) == LesionCounts(1, 0, 2)
    assert count_lesions(_line((0, 16)), _line((0, 4), (6, 10), (12, 16))) == LesionCounts(1, 2, 0)


def test_the_threshold_is_an_iou_and_is_included() -> None:
    one, other = _line((0, 10)), _line((8, 18))  # 2 of 18
    assert count_lesions(one, other, iou=2 / 18).true_positives == 1
    assert count_lesions(one, other, iou=2 / 18 + 1e-6).true_positives == 0
    assert count_lesions(_line((0, 20)), _line((0, 1))).true_positives == 0  # overlap alone is not enough


def test_voxels_that_touch_by_a_corner_are_one_component() -> None:
    mask = np.zeros((2, 2, 2), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True
    assert count_lesions(mask, mask) == LesionCounts(1, 0, 0)


def test_empty_masks() -> None:
    empty, one = _line(), _line((0, 3))
    assert np.isnan(count_lesions(empty, empty).f1)
    assert count_lesions(one, empty) == LesionCounts(0, 0, 1) and count_lesions(one, empty).f1 == 0
    assert count_lesions(empty, one) == LesionCounts(0, 1, 0) and count_lesions(empty, one).f1 == 0


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        count_lesions(_line(), _line(length=3))
    for iou in (0.0, 1.5):
        with pytest.raises(ValueError, match="IoU"):
            count_lesions(_line(), _line(), iou=iou)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.1, 0.3]))
def test_as_many_pairs_as_any_assignment(seed: int, iou: float) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, 2, 4, 5)) < 0.22
    found = count_lesions(one, other, iou)
    (ours, n), (theirs, m) = (label(mask, np.ones((3, 3, 3))) for mask in (one, other))
    fits = np.zeros((n, m), bool)
    for row in range(n):
        for column in range(m):
            a, b = ours == row + 1, theirs == column + 1
            fits[row, column] = (a & b).sum() >= iou * (a | b).sum()
    if n > m:
        fits = fits.T
    columns = permutations(range(fits.shape[1]), fits.shape[0]) if fits.shape[1] <= 6 else [tuple(range(fits.shape[0]))]
    best = max((sum(fits[row, column] for row, column in enumerate(chosen)) for chosen in columns), default=0)
    assert found.true_positives == best if fits.shape[1] <= 6 else found.true_positives >= best
    assert (found.true_positives + found.false_negatives, found.true_positives + found.false_positives) == (n, m)
    mirrored = count_lesions(other, one, iou)
    assert (mirrored.true_positives, mirrored.false_positives) == (found.true_positives, found.false_negatives)
