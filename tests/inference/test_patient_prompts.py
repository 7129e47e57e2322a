"""Prompts in mm land on the voxels that they mark, whatever preprocessing did to the image."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from fedsam_pipeline.dataset.volume import Geometry, Volume
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.inference.patient_prompts import check_prompts, volume_prompts
from fedsam_pipeline.preprocessing.preprocess import preprocess_image, preprocess_labels
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.prompts import ClassPrompts, PromptsFile
from tests.inference.plans_for_tests import make_plans

MATRIX = np.array([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
SIZE = (9, 10, 11)
SPACING = (2.0, 1.0, 1.5)


def _plans(mode: str = "box", **changes: Any) -> Plans:
    return make_plans(prompts={"mode": mode, "jitter_mm": 0.0, "dropout": 0.0}, **changes)


def _geometry(matrix: np.ndarray = MATRIX) -> Geometry:
    return Geometry(SIZE, SPACING, (3.0, -40.0, 5.0), tuple(matrix.ravel().tolist()))


def _mm(geometry: Geometry, voxel: Any) -> tuple[float, float, float]:
    """(z, y, x) voxels to (x, y, z) mm."""
    matrix = np.reshape(geometry.direction, (3, 3))
    x, y, z = np.asarray(geometry.origin) + matrix @ (np.array(voxel[::-1], float) * geometry.spacing[::-1])
    return float(x), float(y), float(z)


def _prepared(geometry: Geometry, block: tuple[slice, ...], plans: Plans) -> tuple[np.ndarray, CaseProperties]:
    """The block on the plan's grid; the image has a border of two zeros at one end of each axis, which is cropped."""
    image = np.random.default_rng(0).normal(5, 1, (1, *SIZE)).astype(np.float32)
    image[:, :2], image[:, :, -2:], image[..., :2] = 0, 0, 0
    labels = np.zeros(SIZE, np.int16)
    labels[block] = 1
    _, properties = preprocess_image(Volume(image, geometry), plans)
    return preprocess_labels(Volume(labels, geometry), properties, plans), properties


@given(data=st.data(), axis=st.sampled_from([0, 1, 2]), finer=st.sampled_from([1.0, 0.5]))
@settings(max_examples=60, deadline=None)
def test_the_box_around_an_object_is_the_objects_box_on_the_plans_grid(data: st.DataObject, axis: int, finer: float) -> None:
    permutation = data.draw(st.permutations([0, 1, 2]))
    matrix = np.zeros((3, 3))
    for column, row in enumerate(permutation):
        matrix[row, column] = data.draw(st.sampled_from([-1.0, 1.0]))
    geometry = _geometry(matrix)
    low = [data.draw(st.integers(first, last)) for first, last in ((2, 6), (0, 5), (2, 8))]
    high = [data.draw(st.integers(start + 1, end)) for start, end in zip(low, (8, 7, 10), strict=True)]
    z, y, x = (slice(start, end + 1) for start, end in zip(low, high, strict=True))
    spacing = tuple(finer * length for length in geometry.canonical().spacing)
    plans = _plans(slice_axis=axis, target_spacing=spacing)
    labels, properties = _prepared(geometry, (z, y, x), plans)
    corners = (_mm(geometry, np.array(low) - 0.5), _mm(geometry, np.array(high) + 0.5))
    (prompt,) = volume_prompts({"anterior": ClassPrompts(boxes=(corners,))}, properties, plans)
    inside = np.argwhere(labels == 1)
    assert (prompt.kind, prompt.label) == ("box", 1)
    np.testing.assert_allclose(prompt.first, inside.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(prompt.last, inside.max(axis=0), atol=1e-6)
    assert prompt.slices == range(inside[:, 0].min(), inside[:, 0].max() + 1)
    centre = (np.array(low) + np.array(high)) // 2
    points = ClassPrompts(points=(_mm(geometry, centre),), negative_points=(_mm(geometry, low),))
    positive, negative = volume_prompts({"posterior": points}, properties, plans)
    assert (positive.kind, negative.kind, positive.label) == ("point", "negative_point", 2)
    for point in (positive, negative):
        assert point.first == point.last
        near = tuple(slice(max(round(place) - 1, 0), round(place) + 2) for place in point.first)
        place = tuple(round(place) for place in point.first)
        assert np.any(labels[near if finer < 1 else place] == 1)  # interpolation rounds corners off


def test_a_box_drawn_on_one_slice_marks_that_slice_and_one_that_leaves_the_image_is_cut() -> None:
    geometry, plans = _geometry(np.eye(3)), _plans(target_spacing=SPACING)
    _, properties = _prepared(geometry, (slice(4, 6),) * 3, plans)
    thin = (_mm(geometry, (4.2, 1, 3)), _mm(geometry, (4.2, 5, 6)))
    large = (_mm(geometry, (-9, -9, -9)), _mm(geometry, (3.5, 99, 99)))
    flat, cut = volume_prompts({"anterior": ClassPrompts(boxes=(thin, large))}, properties, plans)
    assert flat.slices == range(2, 3)  # two slices were cropped
    np.testing.assert_allclose([flat.first[1:], flat.last[1:]], [(1.5, 1.5), (4.5, 3.5)])
    assert cut.slices == range(2)
    assert (cut.first, cut.last[1:]) == ((0, 0, 0), (7, 8))


def test_an_oblique_image_gets_the_box_of_voxels_around_the_corners() -> None:
    tilted = Rotation.from_euler("z", 30, degrees=True).as_matrix()
    geometry, plans = _geometry(tilted), _plans(target_spacing=SPACING)
    _, properties = _prepared(geometry, (slice(4, 6),) * 3, plans)
    middle = np.array(_mm(geometry, (5, 4, 6)))
    box = (tuple((middle - 1).tolist()), tuple((middle + 1).tolist()))
    (prompt,) = volume_prompts({"anterior": ClassPrompts.model_validate({"boxes": [box]})}, properties, plans)
    half = (1.0, np.cos(np.pi / 6) + 0.5, np.cos(np.pi / 6) + 0.5) / np.array(SPACING)
    np.testing.assert_allclose(prompt.first, np.array([3, 4, 4]) - np.maximum(half - 0.5, 0), atol=1e-6)
    np.testing.assert_allclose(prompt.last, np.array([3, 4, 4]) + np.maximum(half - 0.5, 0), atol=1e-6)


def test_prompts_that_lie_elsewhere_are_named() -> None:
    geometry = _geometry()
    plans = _plans(target_spacing=geometry.canonical().spacing)
    _, properties = _prepared(geometry, (slice(4, 6),) * 3, plans)
    outside, inside = (_mm(geometry, (20, 2, 4)), _mm(geometry, (22, 3, 5))), (_mm(geometry, (3, 3, 3)), _mm(geometry, (5, 5, 5)))
    prompts = {"anterior": ClassPrompts(boxes=(inside, outside)), "posterior": ClassPrompts(points=(_mm(geometry, (0, 4, 5)),))}
    with pytest.raises(FedsamError) as caught:
        volume_prompts(prompts, properties, plans)
    message = str(caught.value)
    assert "anterior.boxes.1 lies outside the image" in message
    assert "boxes.0" not in message
    assert "posterior.points.0 lies where the image is empty" in message
    assert "LPS" in message


def test_prompts_are_checked_before_the_work() -> None:
    file = PromptsFile.from_dict(
        {
            "coordinates": "LPS",
            "cases": {
                "patient_1": {"anterio": {"boxes": [[[0, 0, 0], [1, 1, 1]]]}, "posterior": {"points": [[0, 0, 0]]}},
                "patient_z": {"anterior": {"boxes": [[[0, 0, 0], [1, 1, 1]]]}},
                "background": {"background": {"boxes": [[[0, 0, 0], [1, 1, 1]]]}},
            },
        }
    )
    with pytest.raises(FedsamError) as caught:
        check_prompts(file, "prompts.json", {"patient_1", "patient_2", "background"}, _plans(), others=False)
    message = str(caught.value)
    assert "cases.patient_1.anterio: no such class, did you mean anterior?" in message
    assert "cases.patient_1.posterior.points: the model was not trained with them" in message
    assert "cases.patient_z: no such image, did you mean patient_" in message
    assert "cases.background.background: no such class" in message
    with pytest.raises(FedsamError, match="trained without prompts"):
        check_prompts(file, None, {"patient_z"}, _plans("auto"), others=True)
    check_prompts(file, None, {"patient_z"}, _plans(), others=True)
    with pytest.raises(FedsamError, match="nothing for other"):
        check_prompts(file, None, {"other"}, _plans(), others=True)
    with pytest.raises(FedsamError, match="boxes: the model was not trained with them"):
        check_prompts(file, None, {"patient_z"}, _plans("point"), others=True)
