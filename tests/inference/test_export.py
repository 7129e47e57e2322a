"""Export: the exact inverse of preprocessing, for any orientation, crop and slice axis."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.dataset.volume import Geometry, Volume, to_canonical
from fedsam_pipeline.inference.export import export_stream, native_slices
from fedsam_pipeline.preprocessing.resample import resample
from fedsam_pipeline.specs.case import CaseProperties
from fedsam_pipeline.specs.plans import Plans
from tests.inference.plans_for_tests import make_plans


@st.composite
def _geometries(draw: st.DrawFn) -> Geometry:
    permutation = draw(st.permutations([0, 1, 2]))
    matrix = np.zeros((3, 3))
    for column, row in enumerate(permutation):
        matrix[row, column] = draw(st.sampled_from([-1.0, 1.0]))
    z, y, x = (draw(st.integers(1, 7)) for _ in range(3))
    dz, dy, dx = draw(st.permutations([1.0, 2.5, 0.7]))
    return Geometry((z, y, x), (dz, dy, dx), (3.0, -4.0, 5.0), tuple(matrix.ravel().tolist()))


def _properties(geometry: Geometry, start: tuple[int, ...], size: tuple[int, ...], resampled: tuple[int, ...], axis: int) -> CaseProperties:
    return CaseProperties.model_validate(
        {
            "case": "case",
            "original_size": geometry.size,
            "original_spacing": geometry.spacing,
            "original_origin": geometry.origin,
            "original_direction": geometry.direction,
            "canonical_size": geometry.canonical().size,
            "crop_start": start,
            "crop_size": size,
            "resampled_size": resampled,
            "slice_axis": axis,
        }
    )


def export_labels(scores: np.ndarray, properties: CaseProperties, plans: Plans) -> np.ndarray:
    """The mask of scores (K, S, H, W) that come slice by slice."""
    return export_stream(np.moveaxis(scores, 1, 0)[:, None], properties, plans)


def _one_hot(labels: np.ndarray, num_classes: int) -> np.ndarray:
    return np.stack([labels == label for label in range(num_classes)]).astype(np.float32) * 5 - 2


@given(geometry=_geometries(), axis=st.sampled_from([0, 1, 2]), data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_orientation_crop_and_slice_axis_comes_back_exactly(geometry: Geometry, axis: int, data: st.DataObject) -> None:
    native = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 3, geometry.size)
    canonical = to_canonical(Volume(native, geometry)).array
    start = tuple(data.draw(st.integers(0, length - 1)) for length in canonical.shape)
    size = tuple(data.draw(st.integers(1, length - first)) for length, first in zip(canonical.shape, start, strict=True))
    crop = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    outside = np.ones(canonical.shape, bool)
    outside[crop] = False
    scores = _one_hot(np.moveaxis(canonical[crop], axis, 0), 3)
    kept = scores.copy()
    found = export_labels(scores, _properties(geometry, start, size, size, axis), make_plans(slice_axis=axis))
    assert found.dtype == np.uint8
    assert np.array_equal(scores, kept), "the scores were written to"
    expected = to_canonical(Volume(found, geometry)).array
    assert np.array_equal(expected[crop], canonical[crop])
    assert not expected[outside].any()
    if not outside.any():
        assert np.array_equal(found, native)


def test_scores_are_interpolated_linearly_to_the_native_grid() -> None:
    geometry = Geometry((8, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    properties = _properties(geometry, (0, 0, 0), (8, 4, 4), (4, 4, 4), 0)
    labels = np.zeros((4, 4, 4), int)
    labels[2:] = 1
    found = export_labels(_one_hot(labels, 3), properties, make_plans())
    assert found[:, 0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("target", [(3, 5, 6), (9, 10, 14), (1, 1, 1)])
def test_running_argmax_equals_the_argmax_of_all_classes(target: tuple[int, int, int]) -> None:
    geometry = Geometry((6, 7, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    scores = np.random.default_rng(0).normal(size=(5, *target)).astype(np.float32)
    plans = make_plans(labels={"background": 0, "a": 1, "b": 2, "c": 3, "d": 4})
    found = export_labels(scores, _properties(geometry, (0, 0, 0), (6, 7, 8), target, 0), plans)
    assert np.array_equal(found, resample(scores, (6, 7, 8), 1).argmax(axis=0))


@given(
    target=st.tuples(*[st.integers(1, 9)] * 3),
    native=st.tuples(*[st.integers(1, 9)] * 3),
    axis=st.sampled_from([0, 1, 2]),
    step=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_slices_that_stream_equal_the_resampled_volume(
    target: tuple[int, int, int], native: tuple[int, int, int], axis: int, step: int
) -> None:
    volume = np.random.default_rng(0).normal(size=(3, *target)).astype(np.float32)  # (K, Z, Y, X)
    geometry = Geometry(native, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    properties = _properties(geometry, (0, 0, 0), native, target, axis)
    stream = np.moveaxis(volume, 1 + axis, 0)  # (S, K, H, W)

    def overwritten() -> Iterator[np.ndarray]:
        for first in range(0, len(stream), step):
            part = stream[first : first + step].copy()
            yield part
            part[...] = np.nan  # as the predictor's buffer

    found = np.stack([part.numpy() for part in native_slices(overwritten(), properties, 3)])
    np.testing.assert_allclose(np.moveaxis(found, 0, 1 + axis), resample(volume, native, 1), atol=2e-5)


def test_a_sink_is_given_what_the_mask_is_made_of() -> None:
    geometry = Geometry((6, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    properties = _properties(geometry, (2, 0, 0), (4, 4, 4), (3, 4, 4), 0)

    class Sink:
        def __init__(self) -> None:
            self.winners: list[np.ndarray] = []

        def add(self, scores: torch.Tensor) -> None:
            self.winners.append(scores.argmax(0).numpy())

    sink = Sink()
    scores = np.random.default_rng(0).normal(size=(3, 3, 4, 4)).astype(np.float32)
    found = export_stream([np.moveaxis(scores, 1, 0)], properties, make_plans(), sink)
    assert np.array_equal(np.stack(sink.winners), found[2:])
    assert not found[:2].any()


def test_more_than_256_classes_need_uint16() -> None:
    geometry = Geometry((1, 1, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    plans = make_plans(labels={"background": 0} | {f"class {value}": value for value in range(1, 300)})
    found = export_labels(_one_hot(np.array([[[299, 5]]]), 300), _properties(geometry, (0, 0, 0), (1, 1, 2), (1, 1, 2), 0), plans)
    assert found.dtype == np.uint16
    assert found.ravel().tolist() == [299, 5]


def test_scores_that_do_not_fit_are_refused() -> None:
    geometry = Geometry((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    properties = _properties(geometry, (0, 0, 0), (2, 2, 2), (2, 2, 2), 0)
    for shape in ((2, 2, 2, 2), (3, 2, 2, 3), (3, 1, 2, 2), (3, 3, 2, 2)):
        with pytest.raises(ValueError, match="do not fit a case of shape"):
            export_labels(np.zeros(shape, np.float32), properties, make_plans())
