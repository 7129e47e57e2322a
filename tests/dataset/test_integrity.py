"""Image and mask of a case belong together, or the user hears why not."""

from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.volume import Geometry, write_image, write_labels
from fedsam_pipeline.errors import FedsamError
from tests.dataset.raw_for_tests import GRID, make_raw


@pytest.fixture
def dataset(tmp_path: Path) -> RawDataset:
    return load_raw_dataset(make_raw(tmp_path))


def test_a_sound_case(dataset: RawDataset) -> None:
    image, labels = verify_case(dataset, "a2")
    assert image.array.shape == (2, 3, 4, 5) and image.array.dtype == np.float32
    assert labels.array.shape == (3, 4, 5)
    assert [float(channel.mean()) for channel in image.array] == [10.0, 11.0]


def moved(**changes: object) -> Geometry:
    return Geometry.from_dict(GRID.to_dict() | changes)


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        (moved(size=(4, 4, 5)), "differ in shape"),
        (moved(spacing=(3.0, 1.0, 1.1)), r"lie in different places(.|\n)*0\.45 mm apart(.|\n)*spacing"),
        (moved(origin=(0.0, 2.0, 0.0)), r"lie in different places(.|\n)*2 mm apart(.|\n)*origin"),
        (moved(direction=(-1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0)), r"lie in different places(.|\n)*direction"),
    ],
)
def test_a_mask_on_another_grid(dataset: RawDataset, geometry: Geometry, words: str) -> None:
    write_labels(dataset.label_path("a1"), np.zeros(geometry.size, np.uint8), geometry)
    with pytest.raises(FedsamError, match=words) as caught:
        verify_case(dataset, "a1")
    assert "a1" in str(caught.value)


def test_header_noise_is_tolerated(dataset: RawDataset) -> None:
    write_labels(dataset.label_path("a1"), np.zeros(GRID.size, np.uint8), moved(origin=(2e-4, 0.0, -3e-4)))
    verify_case(dataset, "a1")


def test_channels_on_different_grids(dataset: RawDataset) -> None:
    write_image(dataset.image_paths("a1")[1], np.zeros(GRID.size, np.float32), moved(spacing=(3.5, 1.0, 1.0)))
    with pytest.raises(FedsamError, match="channels of one image lie on different grids"):
        verify_case(dataset, "a1")


def test_unknown_label_values_are_named(dataset: RawDataset) -> None:
    labels = np.zeros(GRID.size, np.uint8)
    labels[0, 0, :2] = (7, 9)
    write_labels(dataset.label_path("a1"), labels, GRID)
    with pytest.raises(FedsamError, match=r"does not name(.|\n)*label value 7, 9(.|\n)*0 \(background\), 1 \(organ\), 2 \(nodule\)"):
        verify_case(dataset, "a1")


def test_negative_and_fractional_label_values(dataset: RawDataset) -> None:
    write_image(dataset.label_path("a1"), np.full(GRID.size, -1, np.int16), GRID)
    with pytest.raises(FedsamError, match="label value -1"):
        verify_case(dataset, "a1")
    write_image(dataset.label_path("a1"), np.full(GRID.size, 0.25, np.float32), GRID)
    with pytest.raises(FedsamError, match="not whole numbers"):
        verify_case(dataset, "a1")


def test_nan_image(dataset: RawDataset) -> None:
    array = np.zeros(GRID.size, np.float32)
    array[0, 0, 0] = np.nan
    write_image(dataset.image_paths("a1")[0], array, GRID)
    with pytest.raises(FedsamError, match="NaN or infinite"):
        verify_case(dataset, "a1")


def test_a_label_that_vanished(dataset: RawDataset) -> None:
    dataset.label_path("a1").unlink()
    with pytest.raises(FedsamError, match="image file is missing"):
        verify_case(dataset, "a1")
