"""Pictures of masks: which slices are shown, and what is painted where."""

import io

import numpy as np
import pytest
from matplotlib import image as pictures
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from fedsam_pipeline.report.overlay import CLASS_COLOURS, FILL, MAX_SLICES, choose_slices, mask_png, overlay_png, overlay_slices

CLASSES = {"organ": 1, "nodule": 2}


def _labels() -> NDArray[np.uint8]:
    labels = np.zeros((6, 20, 24), np.uint8)
    labels[2, 4:12, 4:12] = 1
    labels[3, 4:8, 4:8] = 1
    labels[5, 15:17, 15:17] = 2
    return labels


def test_the_largest_slice_and_one_for_every_class_that_it_lacks() -> None:
    labels = _labels()
    assert choose_slices(labels, [1, 2], 0) == [2, 5]
    labels[2, 0, 0] = 2  # now the largest slice shows both
    assert choose_slices(labels, [1, 2], 0) == [2]
    assert choose_slices(np.zeros((7, 3, 3), np.uint8), [1, 2], 0) == [3]
    assert choose_slices(np.moveaxis(_labels(), 0, 2), [1, 2], 2) == [2, 5]
    many = np.zeros((9, 4, 4), np.uint8)
    many[np.arange(9), 0, 0] = np.arange(1, 10)
    assert len(choose_slices(many, list(range(1, 10)), 0)) == MAX_SLICES


def test_values_that_are_no_class_choose_no_slice() -> None:
    labels = np.where(_labels() == 2, 2, -1).astype(np.int8)
    assert choose_slices(labels, [1, 2], 0) == [5]


def _pixels(png: bytes) -> NDArray[np.float64]:
    assert png.startswith(b"\x89PNG")
    return np.asarray(pictures.imread(io.BytesIO(png)), dtype=np.float64)[..., :3]


def _painted(picture: NDArray[np.float64], colour: str, grey: float) -> NDArray[np.bool_]:
    """Pixels of a filled class over an image of constant ``grey``."""
    expected = FILL * np.asarray(to_rgb(colour)) + (1 - FILL) * grey
    found: NDArray[np.bool_] = np.abs(picture - expected).max(axis=-1) < 0.02
    return found


def test_classes_are_painted_in_their_colours_at_their_place() -> None:
    labels = _labels()
    image = np.zeros(labels.shape, np.float32)
    image[:, 0, 0] = 1.0  # the rest of the slice is black
    picture = _pixels(mask_png(image, labels, CLASSES, title="case"))
    organ, nodule = (_painted(picture, colour, 0.0) for colour in CLASS_COLOURS[:2])
    assert organ.any() and nodule.any()
    rows, columns = np.nonzero(organ)
    assert rows.min() > picture.shape[0] * 0.4  # the plain image stands above
    assert columns.max() < picture.shape[1] / 2 < np.nonzero(nodule)[1].min()  # slice 2 is left of slice 5
    assert np.array_equal(picture, _pixels(mask_png(image, labels, CLASSES, title="case")))


def test_upright_slices_stand_on_their_first_row() -> None:
    labels = np.zeros((20, 3, 20), np.uint8)
    labels[2:5, 1, 4:16] = 1  # near the feet
    image = np.zeros(labels.shape, np.float32)
    image[0, :, 0] = 1.0
    heights = []
    for upright in (False, True):
        organ = _painted(_pixels(mask_png(image, labels, CLASSES, axis=1, upright=upright)), CLASS_COLOURS[0], 0.0)
        heights.append(np.nonzero(organ)[0].mean())
    assert heights[0] < heights[1]


def test_shapes_must_agree_and_flat_images_can_be_drawn() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        mask_png(np.zeros((2, 3, 3), np.float32), np.zeros((3, 3, 3), np.uint8), CLASSES)
    assert mask_png(np.zeros((2, 3, 3), np.float32), np.zeros((2, 3, 3), np.uint8), CLASSES, ignore=-1).startswith(b"\x89PNG")


def test_the_largest_slice_and_the_one_with_most_errors() -> None:
    reference = _labels()
    prediction = reference.copy()
    assert overlay_slices(reference, prediction, 0) == [("largest area", 2)]
    prediction[5, 10:17, 10:17] = 2
    assert overlay_slices(reference, prediction, 0) == [("largest area", 2), ("most errors", 5)]
    prediction[2] = 0
    assert overlay_slices(reference, prediction, 0) == [("largest area", 2)]  # now both
    empty = np.zeros_like(reference)
    assert overlay_slices(empty, prediction, 0)[0] == ("largest area", 5)  # of the prediction
    assert overlay_slices(empty, empty, 0) == [("largest area", 3)]
    ignored = np.full(reference.shape, -1, np.int8)
    assert overlay_slices(ignored, prediction.astype(np.int8), 0) == [("largest area", 5)]  # nobody annotated: nothing is wrong


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_contours_stand_where_the_classes_are(axis: int) -> None:
    image = np.zeros((20, 24, 22), np.float32)
    reference = np.zeros(image.shape, np.uint8)
    reference[4:10, 4:10, 4:10] = 1
    picture = _pixels(overlay_png(image, reference, reference, class_names=["organ", "nodule"], spacing=(3.0, 1.0, 1.0), axis=axis))
    organ, nodule = (np.abs(picture - np.asarray(to_rgb(colour))).max(axis=-1) < 0.05 for colour in CLASS_COLOURS[:2])
    assert organ.any() and not nodule.any()
    assert np.nonzero(organ)[1].max() > picture.shape[1] / 2  # a single slice: plain on the left, drawn on the right


def test_shapes_of_an_overlay_must_agree() -> None:
    image, labels = np.zeros((5, 4, 4), np.float32), np.zeros((5, 4, 4), np.uint8)
    for reference, prediction in ((labels[1:], labels), (labels, labels[1:])):
        with pytest.raises(ValueError, match="different shapes"):
            overlay_png(image, reference, prediction, class_names=["organ"])
