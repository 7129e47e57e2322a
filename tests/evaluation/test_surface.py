"""HD95 against a brute force over all pairs of surface voxels, and its rules for empty masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.surface import hd95, hd95_of_labels


def brute_force(one: NDArray[np.bool_], other: NDArray[np.bool_], spacing: tuple[float, ...]) -> float:
    """Every surface voxel against every other, on the whole array; a voxel is surface if one of its face neighbours is not foreground."""

    def surface(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        points = []
        for voxel in np.argwhere(mask):
            steps = [
                step for axis in range(mask.ndim) for step in (np.eye(mask.ndim, dtype=int)[axis], -np.eye(mask.ndim, dtype=int)[axis])
            ]
            neighbours = [voxel + step for step in steps]
            if any((n < 0).any() or (n >= mask.shape).any() or not mask[tuple(n)] for n in neighbours):
                points.append(voxel * np.array(spacing))
        return np.array(points)

    a, b = surface(one), surface(other)
    distances = np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=-1))
    return float(np.percentile(np.concatenate([distances.min(axis=1), distances.min(axis=0)]), 95))


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=60)
def test_hd95_is_that_of_a_brute_force(seed: int, share: float) -> None:
    generator = np.random.default_rng(seed)
    shape = tuple(generator.integers(1, 7, 3))
    one, other = generator.random((2, *shape)) < share
    spacing = tuple(generator.uniform(0.3, 5.0, 3))
    if not one.any() or not other.any():
        assert np.isnan(hd95(one, other, spacing))
        return
    assert hd95(one, other, spacing) == pytest.approx(brute_force(one, other, spacing), abs=1e-9)
    assert hd95(one, other, spacing) == pytest.approx(hd95(other, one, spacing), abs=1e-12)
    assert hd95(one, one, spacing) == 0


def test_a_shifted_block_is_as_far_as_it_was_shifted_in_mm() -> None:
    one, other = np.zeros((2, 20, 20, 20), bool)
    one[5, 5, 5] = other[8, 5, 5] = True
    assert hd95(one, other, (2.5, 1.0, 1.0)) == pytest.approx(7.5)
    assert hd95(one, other, (1.0, 1.0, 1.0)) == pytest.approx(3.0)


def test_distances_of_both_directions_are_pooled() -> None:
    """One far voxel among 40 distances lies beyond the 95th percentile of all of them, but not of its own direction alone."""
    one = np.zeros((1, 1, 60), bool)
    one[..., :20] = True
    other = one.copy()
    other[..., 59] = True  # 21 surface voxels; the last is 40 away from the other mask
    assert hd95(one, other, (1.0, 1.0, 1.0)) == 0  # 1 of 41 pooled; the directed percentile of 21 would be 0 too
    other[..., 57:] = True  # 3 of 43 pooled
    assert 0 < hd95(one, other, (1.0, 1.0, 1.0)) <= 40


@pytest.mark.parametrize(("first", "second"), [(False, False), (True, False), (False, True)])
def test_there_is_no_distance_to_an_empty_mask(first: bool, second: bool) -> None:
    assert np.isnan(hd95(np.full((2, 2, 2), first), np.full((2, 2, 2), second), (1.0, 1.0, 1.0)))


def test_labels_regions_and_ignored_voxels() -> None:
    reference = np.zeros((1, 1, 10), np.int16)
    reference[..., 2], reference[..., 3], reference[..., 8:] = 1, 2, 3
    prediction = np.zeros((1, 1, 10), np.uint8)
    prediction[..., 2], prediction[..., 4], prediction[..., 9] = 1, 2, 2
    found = hd95_of_labels(reference, prediction, [(1,), (2,), (1, 2)], (1.0, 1.0, 2.0), ignore=3)
    assert found[0] == 0
    assert found[1] == pytest.approx(2.0)  # the voxel at 9 is ignored
    assert found[2] == pytest.approx(np.percentile([0, 2, 0, 2], 95))
    assert hd95_of_labels(reference, prediction, [(1,), (2,)], (1.0, 1.0, 2.0))[1] > 2


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        hd95(np.ones((2, 2), bool), np.ones((2, 3), bool), (1.0, 1.0))
    with pytest.raises(ValueError, match="spacing"):
        hd95(np.ones((2, 2), bool), np.ones((2, 2), bool), (1.0, 1.0, 1.0))
