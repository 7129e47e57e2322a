"""From a raw volume to the store's arrays: crop, normalization, orientation, labels."""

import logging
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import Volume, from_canonical
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.crop import crop, nonzero_box, nonzero_mask
from fedsam_pipeline.preprocessing.normalize import BLOCK, mean_and_std, normalize
from fedsam_pipeline.preprocessing.preprocess import (
    MAX_LOCATIONS,
    annotated_locations,
    foreground_locations,
    preprocess_image,
    preprocess_labels,
)
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import ChannelPlan, Plans, ResamplingPlan
from tests.conftest import make_tiny_plans

ZSCORE, NONZERO = ChannelPlan(name="T1", scheme="zscore"), ChannelPlan(name="T2", scheme="zscore_nonzero")
CT = ChannelPlan(name="CT", scheme="ct", clip_low=-100.0, clip_high=300.0, mean=50.0, std=25.0)
RIA = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, -1.0)
TURNED = (0.0, -1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


def box_image() -> NDArray[np.float32]:
    image = np.zeros((1, 8, 9, 10), np.float32)
    image[0, 2:5, 1:7, 3:9] = np.random.default_rng(0).normal(100, 10, (3, 6, 6))
    return image


def as_volume(array: NDArray[Any], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), direction: tuple[float, ...] = LPS) -> Volume:
    z, y, x = array.shape[-3:]
    return Volume(array, Geometry((z, y, x), spacing, (5.0, -3.0, 2.0), direction))


def test_box_of_the_nonzero_voxels() -> None:
    image = box_image()
    assert nonzero_box(image) == ((2, 1, 3), (3, 6, 6))
    second = np.zeros_like(image)
    second[0, 7, 8, 0] = -1
    assert nonzero_box(np.concatenate([image, second])) == ((2, 1, 0), (6, 8, 9))
    assert crop(image, (2, 1, 3), (3, 6, 6)).shape == (1, 3, 6, 6)


def test_an_empty_image_is_not_cropped() -> None:
    assert nonzero_box(np.zeros((1, 3, 4, 5), np.float32)) == ((0, 0, 0), (3, 4, 5))


def test_holes_belong_to_the_mask() -> None:
    image = np.zeros((1, 5, 5, 5), np.float32)
    image[0, 1:4, 1:4, 1:4] = 1
    image[0, 2, 2, 2] = 0
    assert nonzero_mask(image).sum() == 27


def test_moments_over_blocks() -> None:
    values = np.random.default_rng(0).normal(1e6, 3.0, BLOCK + 17).astype(np.float32)
    mean, std = mean_and_std(values)
    assert mean == pytest.approx(values.mean(dtype=np.float64), rel=1e-12)
    assert std == pytest.approx(values.std(dtype=np.float64), rel=1e-9)
    with pytest.raises(ValueError, match="at least one value"):
        mean_and_std(np.zeros(0, np.float32))


def test_zscore_of_any_scale() -> None:
    image = np.random.default_rng(0).normal(21_778, 59_636, (1, 10, 20, 20)).astype(np.float32)
    original = image.copy()
    found = normalize(image, [ZSCORE])
    assert float(found.mean(dtype=np.float64)) == pytest.approx(0, abs=1e-5)
    assert float(found.std(dtype=np.float64)) == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(image, original)


@pytest.mark.parametrize("channel", [ZSCORE, NONZERO])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.7e6])
def test_a_constant_image_becomes_zero(channel: ChannelPlan, value: float) -> None:
    found = normalize(np.full((1, 4, 5, 6), value, np.float32), [channel])
    np.testing.assert_array_equal(found, 0)


def test_zscore_within_the_nonzero_voxels() -> None:
    image = box_image()
    found = normalize(image, [NONZERO])
    inside = image[0] != 0
    assert float(found[0][inside].mean()) == pytest.approx(0, abs=1e-5)
    assert float(found[0][inside].std()) == pytest.approx(1, abs=1e-4)
    assert not found[0][~inside].any()


def test_ct_has_the_federations_scale() -> None:
    image = np.array([-1000.0, -100.0, 50.0, 75.0, 300.0, 3000.0], np.float32).reshape(1, 1, 1, 6)
    assert normalize(image, [CT]).ravel().tolist() == [-6.0, -6.0, 0.0, 1.0, 10.0, 10.0]


def test_each_channel_has_its_own_scheme() -> None:
    image = np.concatenate([box_image(), box_image()])
    found = normalize(image, [CT, ZSCORE])
    np.testing.assert_array_equal(found[:1], normalize(image[:1], [CT]))
    np.testing.assert_array_equal(found[1:], normalize(image[1:], [ZSCORE]))
    with pytest.raises(ValueError, match="2 channels for a plan of 1"):
        normalize(image, [CT])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_order_of_operations(axis: int) -> None:
    plans = make_tiny_plans(slice_axis=axis, target_spacing=(1.5, 1.0, 2.0))
    image, properties = preprocess_image(as_volume(box_image(), (3.0, 1.0, 1.0)), plans, case="a", site="s", input_files=["a_0000.nii.gz"])
    assert (properties.crop_start, properties.crop_size, properties.resampled_size) == ((2, 1, 3), (3, 6, 6), (6, 6, 3))
    assert image.shape == (1, *properties.stored_size)
    assert image.dtype == np.float32
    cropped = normalize(crop(box_image(), properties.crop_start, properties.crop_size), plans.channels)
    assert abs(float(cropped.mean())) < 1e-5  # normalized before resampling, from the cropped voxels
    assert np.isfinite(image).all()
    assert (properties.case, properties.site, properties.input_files) == ("a", "s", ("a_0000.nii.gz",))


@pytest.mark.parametrize("direction", [RIA, TURNED])
def test_orientation_of_the_file_does_not_matter(direction: tuple[float, ...]) -> None:
    plans = make_tiny_plans(target_spacing=(2.0, 1.0, 1.0), slice_axis=1)
    generator = np.random.default_rng(0)
    straight = as_volume(generator.normal(size=(1, 6, 7, 8)).astype(np.float32), (2.0, 1.5, 1.0))
    labels = as_volume(generator.integers(0, 3, (6, 7, 8)).astype(np.int16), (2.0, 1.5, 1.0))
    turned = stored_as(straight, direction)
    expected, straight_properties = preprocess_image(straight, plans)
    found, properties = preprocess_image(turned, plans)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(
        preprocess_labels(stored_as(labels, direction), properties, plans), preprocess_labels(labels, straight_properties, plans)
    )


def stored_as(volume: Volume, direction: tuple[float, ...]) -> Volume:
    """The same patient, stored along other axes."""
    axes, _ = Geometry((1, 1, 1), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction).canonical_axes()
    size, spacing = [0, 0, 0], [0.0, 0.0, 0.0]
    for target, source in enumerate(axes):  # (x, y, z): image axis `source` becomes canonical axis `target`
        size[2 - source] = volume.geometry.size[2 - target]
        spacing[2 - source] = volume.geometry.spacing[2 - target]
    geometry = Geometry((size[0], size[1], size[2]), (spacing[0], spacing[1], spacing[2]), (0.0, 0.0, 0.0), direction)
    return Volume(from_canonical(volume.array, geometry), geometry)


def test_labels_follow_the_image_and_fit_their_type() -> None:
    plans = make_tiny_plans()
    labels = (box_image()[0] > 0).astype(np.int16) * 2
    _, properties = preprocess_image(as_volume(box_image()), plans)
    found = preprocess_labels(as_volume(labels), properties, plans)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, np.full((3, 6, 6), 2))
    many = make_tiny_plans(labels={"background": 0} | {f"class {value}": value for value in range(1, 130)})
    assert preprocess_labels(as_volume(labels), properties, many).dtype == np.int16


def test_ignored_voxels_are_minus_one_in_the_store_whatever_the_resampling() -> None:
    image = np.random.default_rng(0).normal(100, 10, (1, 6, 8, 8)).astype(np.float32)
    labels = np.zeros((6, 8, 8), np.int16)
    labels[:, 2:4, 2:6], labels[:, 4:, :] = 1, 3
    for spacing in ((1.0, 1.0, 1.0), (1.0, 2.0, 1.5)):
        _, properties = preprocess_image(as_volume(image, spacing), make_tiny_plans())
        found = preprocess_labels(as_volume(labels, spacing), properties, make_tiny_plans(), ignore=3)
        assert found.dtype == np.int8
        assert set(np.unique(found)) == {-1, 0, 1}  # neither mean nor neighbour of two labels
        rows = round(4 * spacing[1])
        np.testing.assert_array_equal(found[:, rows:] == -1, True)
        np.testing.assert_array_equal(found[:, :rows] == -1, False)
        assert set(foreground_locations(found, "a")) == {1}


def test_ignored_voxels_where_the_image_is_empty_are_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.full((8, 9, 10), 3, np.int16)
    plans = make_tiny_plans()
    _, properties = preprocess_image(as_volume(box_image()), plans)
    with caplog.at_level(logging.WARNING):
        preprocess_labels(as_volume(labels), properties, plans, ignore=3)
    assert not caplog.records


def test_labels_on_empty_voxels_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    labels = np.ones((8, 9, 10), np.int16)
    plans = make_tiny_plans()
    _, properties = preprocess_image(as_volume(box_image()), plans, case="odd")
    with caplog.at_level(logging.WARNING):
        preprocess_labels(as_volume(labels), properties, plans)
    assert f"case odd: {720 - 108} labelled voxels lie where the image is empty" in caplog.text


def test_wrong_number_of_channels() -> None:
    with pytest.raises(FedsamError, match="image knee has the wrong number of channels") as caught:
        preprocess_image(as_volume(np.ones((2, 3, 3, 3), np.float32)), make_tiny_plans(), case="knee")
    assert "1: MRI" in str(caught.value)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_resampling_orders_of_the_plan(order: int) -> None:
    resampling = ResamplingPlan(image_order=order, image_order_coarse_axis=0, label_order=0)
    plans: Plans = make_tiny_plans(resampling=resampling, target_spacing=(1.0, 0.5, 0.5))
    image, properties = preprocess_image(as_volume(box_image(), (4.0, 1.0, 1.0)), plans)
    assert image.shape == (1, 12, 12, 12)
    np.testing.assert_array_equal(image[0, 0], image[0, 3])  # nearest along the coarse axis
    assert preprocess_labels(as_volume(box_image()[0].astype(np.int16)), properties, plans).shape == (12, 12, 12)


def test_foreground_locations() -> None:
    labels = np.zeros((20, 20, 20), np.int8)
    labels[:, :10] = 1
    labels[3, 15, 4] = 5
    found = foreground_locations(labels, "case_a")
    assert sorted(found) == [1, 5]
    assert found[1].shape == (MAX_LOCATIONS, 3)
    assert found[5].tolist() == [[3, 15, 4]]
    assert all(labels[tuple(voxel)] == 1 for voxel in found[1])
    assert len({tuple(voxel) for voxel in found[1].tolist()}) == MAX_LOCATIONS
    np.testing.assert_array_equal(found[1], foreground_locations(labels, "case_a")[1])
    assert (found[1] != foreground_locations(labels, "case_b")[1]).any()
    assert foreground_locations(np.zeros((2, 2, 2), np.int8), "empty") == {}


def test_annotated_locations() -> None:
    labels = np.zeros((20, 20, 20), np.int8)
    labels[:, :10] = 1
    assert annotated_locations(labels, "case_a").shape == (0, 3)  # all are: nothing to remember
    labels[4:] = -1
    found = annotated_locations(labels, "case_a")
    assert found.shape == (MAX_LOCATIONS, 3) and found.dtype == np.int32
    assert {int(labels[tuple(voxel)]) for voxel in found} == {0, 1}
    np.testing.assert_array_equal(found, annotated_locations(labels, "case_a"))
    assert annotated_locations(np.full((2, 2, 2), -1, np.int8), "nothing").shape == (0, 3)


def test_properties_that_cannot_be() -> None:
    _, properties = preprocess_image(as_volume(box_image()), make_tiny_plans())
    values = properties.to_dict()
    with pytest.raises(FedsamError, match="leaves the volume"):
        CaseProperties.from_dict(values | {"crop_start": [6, 1, 3]})
    with pytest.raises(FedsamError, match="no permutation of original_size"):
        CaseProperties.from_dict(values | {"original_size": [80, 9, 10]})
