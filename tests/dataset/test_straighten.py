"""Slightly skewed axes are put straight; others are not."""

import math
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.straighten import SMALL_SKEW, nearly_straight, stored_geometry, straighten_nifti, straightened
from fedsam_pipeline.dataset.volume import read_image, write_image
from tests.dataset.raw_for_tests import GRID, skew, textured
from tests.dataset.test_geometry import geometries


@given(geometry=geometries(), shear=st.floats(-0.01, 0.01))
def test_the_nearest_straight_grid(geometry: Geometry, shear: float) -> None:
    matrix = np.asarray(geometry.direction).reshape(3, 3) @ np.array([[1, math.sin(shear), 0], [0, math.cos(shear), 0], [0, 0, 1]])
    skewed = replace(geometry, direction=tuple(matrix.ravel()))
    straight = straightened(skewed)
    assert straight is not None and straight.is_orthonormal(1e-9)
    assert (straight.size, straight.spacing) == (skewed.size, skewed.spacing)
    np.testing.assert_allclose(straight.corners().mean(axis=0), skewed.corners().mean(axis=0), atol=1e-6)
    diagonal = float(np.linalg.norm(np.multiply(geometry.size, geometry.spacing)))
    assert skewed.corner_distance(straight) <= abs(shear) * diagonal + 1e-6


def test_more_than_a_small_skew_is_left() -> None:
    for angle, possible in ((0.9 * SMALL_SKEW, True), (1.1 * SMALL_SKEW, False)):
        skewed = replace(GRID, direction=(1.0, math.sin(angle), 0.0, 0.0, math.cos(angle), 0.0, 0.0, 0.0, 1.0))
        assert (straightened(skewed) is not None) == possible
    assert straightened(replace(GRID, direction=(math.nan, *GRID.direction[1:]))) is None


def test_the_header_of_a_skewed_nifti_file(tmp_path: Path) -> None:
    path = tmp_path / "image.nii.gz"
    turned = replace(GRID, origin=(5.0, -6.0, 7.0), direction=(0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0))
    write_image(path, textured(0), turned)
    stored = stored_geometry(path)
    assert stored is not None and stored.same_grid(turned, 1e-4)
    write_image(path, textured(0), GRID)
    skew(path, 0.01)
    assert nearly_straight(path)
    skew(path, 0.5)
    assert not nearly_straight(path)


def test_a_straight_grid_written_into_a_header_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "image.nii"
    write_image(path, textured(0), GRID)
    turned = replace(GRID, spacing=(2.0, 1.5, 0.5), origin=(5.0, -6.0, 7.0), direction=(0.0, -1.0, 0.0, 0.6, 0.0, -0.8, 0.8, 0.0, 0.6))
    content = bytearray(path.read_bytes())
    straighten_nifti(content, turned)
    path.write_bytes(bytes(content))
    image = read_image([path])
    assert image.geometry.same_grid(turned, 1e-4)
    assert np.array_equal(image.array[0], textured(0))
    with pytest.raises(ValueError, match="no NIfTI-1"):
        straighten_nifti(bytearray(400), turned)


def test_files_without_a_usable_header(tmp_path: Path) -> None:
    (tmp_path / "garbage.nii").write_bytes(b"x" * 500)
    (tmp_path / "garbage.mha").write_bytes(b"x" * 500)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5), np.float32)), str(tmp_path / "flat.mha"))
    write_image(tmp_path / "broken.nii", textured(0), GRID)
    content = bytearray((tmp_path / "broken.nii").read_bytes())
    struct.pack_into("<12f", content, 280, *[0.0] * 12)
    (tmp_path / "broken.nii").write_bytes(bytes(content))
    for name in ("garbage.nii", "garbage.mha", "flat.mha", "broken.nii"):
        assert stored_geometry(tmp_path / name) is None, name
