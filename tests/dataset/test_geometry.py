"""Grids as values, and their canonical order, against SimpleITK's own."""

import itertools
from typing import Any

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.volume import Volume, from_canonical, to_canonical

sitk: Any = SimpleITK


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    """Any rotation (uniform quaternion), any axis order and flips, spacings from 0.2 to 8 mm."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    quaternion = generator.normal(size=4)
    w, x, y, z = quaternion / np.linalg.norm(quaternion)
    rotation = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    if draw(st.booleans()):
        rotation = np.round(np.eye(3))
    order = draw(st.permutations([0, 1, 2]))
    flips = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    matrix = rotation[:, order] * np.array(flips)
    size = draw(st.tuples(*[st.integers(1, 6)] * 3))
    spacing = draw(st.tuples(*[st.floats(0.2, 8.0)] * 3))
    origin = draw(st.tuples(*[st.floats(-500.0, 500.0)] * 3))
    return Geometry(size, spacing, origin, tuple(float(value) for value in matrix.ravel()))


def as_itk(array: Any, geometry: Geometry) -> Any:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    return image


@settings(max_examples=80, deadline=None)
@given(geometry=geometries())
def test_canonical_equals_itk_and_comes_back_exactly(geometry: Geometry) -> None:
    array = np.arange(np.prod(geometry.size), dtype=np.float32).reshape(geometry.size)
    canonical = to_canonical(Volume(array[None], geometry))
    expected = sitk.DICOMOrient(as_itk(array, geometry), "LPS")
    assert canonical.geometry.orientation == "LPS"
    assert np.array_equal(canonical.array[0], sitk.GetArrayFromImage(expected))
    assert np.allclose(canonical.geometry.origin, expected.GetOrigin(), atol=1e-9)
    assert np.allclose(canonical.geometry.direction, expected.GetDirection())
    assert np.allclose(canonical.geometry.spacing[::-1], expected.GetSpacing())
    assert canonical.array.flags.c_contiguous
    back = from_canonical(canonical.array, geometry)
    assert np.array_equal(back[0], array)
    assert back.flags.c_contiguous


@settings(max_examples=50, deadline=None)
@given(geometry=geometries())
def test_canonical_is_idempotent_and_covers_the_same_space(geometry: Geometry) -> None:
    canonical = geometry.canonical()
    assert canonical.canonical() == canonical
    mine = sorted(map(tuple, geometry.corners().round(6)))
    assert np.allclose(mine, sorted(map(tuple, canonical.corners().round(6))), atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(geometry=geometries())
def test_dict_round_trip(geometry: Geometry) -> None:
    assert Geometry.from_dict(geometry.to_dict()) == geometry


def test_every_axis_code_is_reached() -> None:
    plain = Geometry((2, 3, 4), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    codes = set()
    for order, signs in itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)):
        matrix = np.eye(3)[:, list(order)] * signs
        codes.add(Geometry(plain.size, plain.spacing, plain.origin, tuple(matrix.ravel().tolist())).orientation)
    assert len(codes) == 48
    assert plain.orientation == "LPS"


def test_corners_are_the_outer_ones() -> None:
    geometry = Geometry((2, 3, 4), (3.0, 2.0, 1.0), (10.0, 20.0, 30.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    assert geometry.corners().min(axis=0).tolist() == [9.5, 19.0, 28.5]
    assert geometry.corners().max(axis=0).tolist() == [13.5, 25.0, 34.5]


def test_same_grid_sees_size_spacing_of_single_slices_and_small_shifts() -> None:
    geometry = Geometry((1, 3, 4), (3.0, 2.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    assert geometry.same_grid(Geometry(geometry.size, geometry.spacing, (5e-4, 0.0, 0.0), geometry.direction))
    assert not geometry.same_grid(Geometry(geometry.size, geometry.spacing, (2e-3, 0.0, 0.0), geometry.direction))
    assert not geometry.same_grid(Geometry(geometry.size, (3.1, 2.0, 1.0), geometry.origin, geometry.direction))
    assert not geometry.same_grid(Geometry((1, 4, 4), geometry.spacing, geometry.origin, geometry.direction))


def test_impossible_geometries_are_refused() -> None:
    with pytest.raises(ValueError, match="3D grid"):
        Geometry((1, 2, 3), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0.0))
    with pytest.raises(ValueError, match="3D grid"):
        Geometry.from_dict({"size": [1, 2], "spacing": [1, 1], "origin": [0, 0], "direction": []})


def test_wrong_arrays_are_refused() -> None:
    geometry = Geometry((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.0, 0, 1.0, 0, 1.0, 0, 1.0, 0, 0))
    with pytest.raises(ValueError, match="does not fit"):
        Volume(np.zeros((4, 3, 2)), geometry)
    with pytest.raises(ValueError, match="canonical grid"):
        from_canonical(np.zeros((2, 3, 4)), geometry)
