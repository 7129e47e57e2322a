"""Resampling: sizes, sampling positions, orders, labels."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fedsam_pipeline.preprocessing.resample import coarse_axis, resample, resample_labels, resampled_size

SIDES = st.tuples(*(st.integers(1, 9) for _ in range(3)))


def ramp(size: tuple[int, int, int], axis: int) -> np.ndarray:
    """(1, *size): each voxel holds the position of its centre along an axis, 0 to 1 from face to face."""
    shape = [1, 1, 1]
    shape[axis] = size[axis]
    centres = ((np.arange(size[axis]) + 0.5) / size[axis]).reshape(shape)
    return np.broadcast_to(centres, size)[None].astype(np.float32)


def test_size_is_rounded_and_never_empty() -> None:
    assert resampled_size((10, 100, 3), (3.0, 0.5, 0.1), (1.0, 0.8, 1.0)) == (30, 62, 1)


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("new", [7, 20, 31])
def test_a_ramp_stays_a_ramp(order: int, axis: int, new: int) -> None:
    old, target = [12, 12, 12], [12, 12, 12]
    target[axis] = new
    found = resample(ramp((12, 12, 12), axis), target, order)
    inner = [slice(None)] * 4
    inner[axis + 1] = slice(new // 6, new - new // 6)  # beyond the outermost centres the border repeats
    expected = ramp((target[0], target[1], target[2]), axis)
    np.testing.assert_allclose(found[tuple(inner)], expected[tuple(inner)], atol=2e-5 if order == 1 else 3e-3)
    assert found.dtype == np.float32
    assert old == [12, 12, 12]


def test_nearest_takes_the_voxel_that_holds_the_centre() -> None:
    line = np.arange(4, dtype=np.float32).reshape(1, 4, 1, 1)
    assert resample(line, (8, 1, 1), 0).ravel().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert resample(line, (2, 1, 1), 0).ravel().tolist() == [1, 3]


@settings(max_examples=30, deadline=None)
@given(SIDES, SIDES, st.sampled_from([0, 1, 3]))
def test_constants_stay_constant_and_the_same_size_is_no_work(old: tuple[int, int, int], new: tuple[int, int, int], order: int) -> None:
    constant = np.full((2, *old), 5.0, np.float32)
    found = resample(constant, new, order)
    assert found.shape == (2, *new)
    np.testing.assert_allclose(found, 5.0, rtol=1e-5)
    assert resample(constant, old, order) is constant


def test_the_coarse_axis_has_its_own_order() -> None:
    image = np.random.default_rng(0).normal(size=(1, 3, 8, 8)).astype(np.float32)
    found = resample(image, (6, 4, 4), 1, coarse_axis=0, coarse_order=0)
    flat = resample(image, (3, 4, 4), 1)
    np.testing.assert_array_equal(found, np.repeat(flat, 2, axis=1))
    np.testing.assert_array_equal(resample(image, (6, 4, 4), 1, coarse_axis=0, coarse_order=1), resample(image, (6, 4, 4), 1))


@pytest.mark.parametrize(
    ("spacing", "target", "expected"),
    [
        ((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None),
        ((3.1, 1.0, 1.0), (1.0, 1.0, 1.0), 0),
        ((1.0, 1.0, 1.0), (1.0, 1.0, 5.0), 2),
        ((4.0, 4.0, 1.0), (1.0, 1.0, 1.0), None),  # two coarse axes: nothing to keep apart
    ],
)
def test_coarse_axis(spacing: tuple[float, ...], target: tuple[float, ...], expected: int | None) -> None:
    assert coarse_axis(spacing, target) == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), SIDES, SIDES, st.booleans())
def test_labels_are_the_argmax_of_linear_one_hot_maps(seed: int, old: tuple[int, int, int], new: tuple[int, int, int], apart: bool) -> None:
    labels = np.random.default_rng(seed).choice([0, 1, 4], old).astype(np.int16)
    if apart:  # each class in a corner of its own
        far = np.indices(old).sum(axis=0) > sum(old) / 2
        labels[labels == np.where(far, 1, 4)] = 0
    shares = np.stack([resample((labels == value)[None].astype(np.float32), new)[0] for value in (0, 1, 4)])
    found = resample_labels(labels, new)
    chosen = np.take_along_axis(shares, np.searchsorted([0, 1, 4], found)[None], axis=0)[0]
    np.testing.assert_allclose(chosen, shares.max(axis=0), atol=1e-6)  # at a tie either class has the largest share
    assert found.dtype == np.int16


def test_what_lies_between_the_new_centres_is_lost() -> None:
    labels = np.zeros((1, 1, 30), np.int16)
    labels[0, 0, 1] = 3
    assert not resample_labels(labels, (1, 1, 3)).any()


def test_labels_nearest_and_unchanged() -> None:
    labels = np.array([0, 7], np.int16).reshape(2, 1, 1)
    assert resample_labels(labels, (4, 1, 1), 0).ravel().tolist() == [0, 0, 7, 7]
    assert resample_labels(labels, (2, 1, 1)) is labels


def nnunet_resize(image: np.ndarray, size: tuple[int, ...], order: Literal[1, 3]) -> np.ndarray:
    """scikit-image's ``resize`` as nnU-Net calls it (edge, no smoothing, clipped), for an array of any number of axes, in float64."""
    ratios = [old / new for old, new in zip(image.shape, size, strict=True)]
    centres = np.meshgrid(*((np.arange(new) + 0.5) * ratio - 0.5 for new, ratio in zip(size, ratios, strict=True)), indexing="ij")
    found = ndimage.map_coordinates(image.astype(np.float64), np.stack(centres), order=order, mode="nearest")
    return np.asarray(np.clip(found, image.min(), image.max()))


def nnunet_nearest(volume: np.ndarray, length: int, axis: int) -> np.ndarray:
    """Order 0 along one axis."""
    centres = (np.arange(length) + 0.5) * volume.shape[axis] / length - 0.5
    return np.asarray(np.take(volume, np.clip(np.floor(centres + 0.5), 0, volume.shape[axis] - 1).astype(int), axis=axis))


SHAPES = st.tuples(*(st.integers(2, 12) for _ in range(3)))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), SHAPES, SHAPES)
def test_order_3_is_nnunets_for_isotropic_volumes(seed: int, old: tuple[int, int, int], new: tuple[int, int, int]) -> None:
    image = np.random.default_rng(seed).normal(size=(2, *old)).astype(np.float32)
    expected = np.stack([nnunet_resize(channel, new, 3) for channel in image])
    np.testing.assert_allclose(resample(image, new, 3), expected, atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), SHAPES, SHAPES, st.sampled_from([0, 1, 2]))
def test_orders_3_and_0_are_nnunets_for_anisotropic_volumes(
    seed: int, old: tuple[int, int, int], new: tuple[int, int, int], axis: int
) -> None:
    """Each slice by itself, then the nearest slice."""
    image = np.random.default_rng(seed).normal(size=old).astype(np.float32)
    plane = tuple(length for other, length in enumerate(new) if other != axis)
    slices = np.stack([nnunet_resize(each, plane, 3) for each in np.moveaxis(image, axis, 0)], axis=axis)
    found = resample(image[None], new, 3, coarse_axis=axis, coarse_order=0)[0]
    np.testing.assert_allclose(found, nnunet_nearest(slices, new[axis], axis), atol=2e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), SHAPES, SHAPES, st.sampled_from([None, 0, 1, 2]))
def test_label_order_1_is_nnunets_where_one_class_has_the_majority(
    seed: int, old: tuple[int, int, int], new: tuple[int, int, int], axis: int | None
) -> None:
    """nnU-Net keeps the last class of at least half the share, and background without one; so it differs from the largest share there."""
    labels = np.random.default_rng(seed).integers(0, 3, old).astype(np.int8)
    taken = labels if axis is None else nnunet_nearest(labels, new[axis], axis)
    shares = np.stack([nnunet_resize((taken == value).astype(np.float32), new, 1) for value in range(3)])
    expected = np.zeros(new, np.int8)
    for value, share in enumerate(shares):
        expected[share >= 0.5] = value
    majority = shares.max(axis=0) > 0.5 + 1e-5
    np.testing.assert_array_equal(resample_labels(labels, new, 1, coarse_axis=axis)[majority], expected[majority])


def test_a_mask_follows_its_slice() -> None:
    """Where the image takes the nearest slice along its coarse axis, the mask takes the same."""
    labels = np.random.default_rng(0).integers(0, 3, (3, 6, 6)).astype(np.int8)
    taken = resample(np.arange(3, dtype=np.float32).reshape(1, 3, 1, 1), (7, 1, 1), 1, coarse_axis=0).ravel().astype(int)
    expected = np.concatenate([resample_labels(labels[index : index + 1], (1, 9, 9)) for index in taken])
    np.testing.assert_array_equal(resample_labels(labels, (7, 9, 9), coarse_axis=0), expected)
    assert (resample_labels(labels, (7, 9, 9), coarse_axis=0, coarse_order=1) != expected).any()


def test_misuse() -> None:
    with pytest.raises(ValueError, match="orders are 0, 1 and 3"):
        resample(np.zeros((1, 2, 2, 2), np.float32), (1, 1, 1), 2)
    with pytest.raises(ValueError, match="cannot resample an array of shape"):
        resample(np.zeros((2, 2, 2), np.float32), (1, 1, 1), 1)
    with pytest.raises(ValueError, match="order 0 or 1"):
        resample_labels(np.zeros((2, 2, 2), np.int16), (1, 1, 1), 3)
