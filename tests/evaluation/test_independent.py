"""Surface metrics beside other people's programs: MedPy's HD95 and ASSD, and the NSD of its authors, on random shapes and spacings."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from medpy.metric import binary
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from surface_distance.metrics import compute_surface_dice_at_tolerance, compute_surface_distances

from fedsam_pipeline.evaluation.surface import surface_distances
from fedsam_pipeline.evaluation.surface_dice import surface_dice

Mask = NDArray[np.bool_]
SPACINGS = ((1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (0.5, 0.5, 5.0), (1.2, 2.5, 0.7))
TOLERANCES = (0.5, 1.0, 3.0, 8.0)
AUTHORS_TRIANGLES = 0.01
"""how far NSD may be off because polygons that are not flat are cut into triangles in another way; 0.004 was the most of 6000 shapes"""


def shapes(seed: int, spacing: tuple[float, ...]) -> tuple[Mask, Mask]:
    """Two smooth bodies that differ a little, such as a reference and a prediction, some of them cut by the border; or noise."""
    generator = np.random.default_rng(seed)
    size = tuple(generator.integers(4, 24, 3))
    if seed % 4 == 0:
        one, other = generator.random((2, *size)) < generator.uniform(0.05, 0.9)
        return one, other
    field, change = (gaussian_filter(generator.normal(size=size), [3 / length for length in spacing]) for _ in range(2))
    level = np.quantile(field, generator.uniform(0.3, 0.9))
    return field > level, field + generator.uniform(0, 0.6) * change > level


@pytest.mark.parametrize("spacing", SPACINGS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_hd95_and_assd_are_medpys(spacing: tuple[float, ...], seed: int) -> None:
    reference, prediction = shapes(seed, spacing)
    assume(reference.any() and prediction.any())
    found = surface_distances(reference, prediction, spacing)
    assert found is not None
    assert found.hd95() == pytest.approx(binary.hd95(prediction, reference, voxelspacing=spacing), abs=1e-9)
    assert found.assd() == pytest.approx(binary.assd(prediction, reference, voxelspacing=spacing), abs=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nsd_is_that_of_its_authors(spacing: tuple[float, ...], seed: int) -> None:
    reference, prediction = shapes(seed, spacing)
    assume(reference.any() and prediction.any())
    theirs = compute_surface_distances(reference, prediction, spacing)
    expected = [compute_surface_dice_at_tolerance(theirs, tolerance) for tolerance in TOLERANCES]
    assert surface_dice(reference, prediction, spacing, TOLERANCES) == pytest.approx(expected, abs=AUTHORS_TRIANGLES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nsd_is_exactly_that_of_its_authors_where_all_pieces_are_flat() -> None:
    """Two boxes: faces, edges and corners are cut by one plane each."""
    one, other = np.zeros((2, 12, 14, 16), bool)
    one[2:8, 3:10, 2:12] = other[4:10, 3:11, 3:14] = True
    for spacing in SPACINGS:
        theirs = compute_surface_distances(one, other, spacing)
        expected = [compute_surface_dice_at_tolerance(theirs, tolerance) for tolerance in TOLERANCES]
        assert surface_dice(one, other, spacing, TOLERANCES) == pytest.approx(expected, abs=1e-9)
