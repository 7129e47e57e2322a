"""NSD: areas of known bodies, shifts by known lengths, tolerances, empty masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsam_pipeline.evaluation.surface_dice import element_areas, surface_dice


def test_a_plane_has_the_area_of_the_voxels_faces() -> None:
    """Four of the eight corners on one side: codes of the lower half along each axis."""
    areas = element_areas((3.0, 0.5, 2.0))
    corners = [(z, y, x) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    halves = [sum(1 << bit for bit, corner in enumerate(corners) if corner[axis] == 0) for axis in range(3)]
    assert [areas[code] for code in halves] == pytest.approx([0.5 * 2, 3 * 2, 3 * 0.5])
    assert areas[0] == areas[255] == 0
    assert areas[1] == pytest.approx(np.linalg.norm(np.cross((1.5, -0.25, 0), (1.5, 0, -1))) / 2)  # one corner: a triangle


def test_areas_do_not_depend_on_which_side_is_filled() -> None:
    areas = element_areas((1.0, 2.0, 3.0))
    flipped = areas[::-1]  # code 255 - k
    halves = np.array([code.bit_count() == 4 for code in range(256)])
    assert areas[~halves] == pytest.approx(flipped[~halves])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (2.0, 1.0, 0.5)])
def test_all_of_a_body_is_as_near_as_it_was_shifted(spacing: tuple[float, float, float]) -> None:
    one, other = np.zeros((2, 20, 20, 20), bool)
    one[4:10, 4:16, 4:16], other[7:13, 4:16, 4:16] = True, True
    shift = 3 * spacing[0]
    below, at = surface_dice(one, other, spacing, (shift - 0.01, shift))
    assert below < 1 and at == 1


def test_thin_faces_weigh_as_much_as_their_area() -> None:
    """A plate whose upper face moved: the faces are nearly all of its area, whatever the number of voxels along its thickness."""
    one, other = np.zeros((2, 30, 42, 42), bool)
    one[5:15, 1:41, 1:41], other[5:18, 1:41, 1:41] = True, True
    spacing = (0.1, 2.0, 2.0)
    moved = surface_dice(one, other, spacing, (0.15,))[0]
    sides = 4 * 80 * (1.0 + 1.3) / 2
    assert moved == pytest.approx((80 * 80 + sides) / (2 * 80 * 80 + sides), abs=0.02)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 4.0))
@settings(max_examples=30, deadline=None)
def test_properties(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    one, other = generator.random((2, 5, 6, 7)) < 0.4
    spacing = generator.uniform(0.3, 4, 3).tolist()
    tolerances = sorted(generator.uniform(0.1, 6, 3).tolist())
    found = surface_dice(one, other, spacing, tolerances).tolist()
    assert found == sorted(found) and found[0] >= 0 and found[-1] <= 1 + 1e-12
    assert surface_dice(other, one, spacing, tolerances) == pytest.approx(found)
    assert surface_dice(one[::-1, :, ::-1], other[::-1, :, ::-1], spacing, tolerances) == pytest.approx(found)
    assert surface_dice(np.pad(one, 3), np.pad(other, 3), spacing, tolerances) == pytest.approx(found)
    assert surface_dice(one, one, spacing, tolerances) == pytest.approx(1)
    assert surface_dice(one, other, [scale * v for v in spacing], [scale * v for v in tolerances]) == pytest.approx(found)


def test_empty_masks() -> None:
    empty, full = np.zeros((3, 3, 3), bool), np.ones((3, 3, 3), bool)
    assert np.isnan(surface_dice(empty, empty, (1, 1, 1), (1, 2))).tolist() == [True, True]
    assert surface_dice(empty, full, (1, 1, 1), (1, 99)).tolist() == [0, 0]
    assert surface_dice(full, empty, (1, 1, 1), (1, 99)).tolist() == [0, 0]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shapes"):
        surface_dice(np.ones((2, 2, 2), bool), np.ones((2, 2, 3), bool), (1, 1, 1), (1,))
    with pytest.raises(ValueError, match="shapes"):
        surface_dice(np.ones((2, 2), bool), np.ones((2, 2), bool), (1, 1), (1,))
