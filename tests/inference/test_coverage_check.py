"""Images beside a coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.dataset.volume import Geometry, Volume
from fedsam_pipeline.inference.coverage_check import beyond, view_image
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from tests.inference.coverage_for_tests import make_coverage
from tests.inference.plans_for_tests import make_plans

CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0)


def viewed(array: np.ndarray, *, known: bool = True):  # type: ignore[no-untyped-def]
    volume = Volume(array, Geometry((array.shape[1], array.shape[2], array.shape[3]), (3.0, 2.0, 1.0), (0.0, 0.0, 0.0), CORONAL))
    _, properties = preprocess_image(volume, make_plans())
    return view_image(volume, properties, ("MR",), make_coverage() if known else None)


@given(st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 9)), st.integers(0, 10**6))
def test_the_share_is_that_of_the_masks_voxels(size: tuple[int, int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    array = generator.choice([10.0, 50.0, 100.0, 151.0, 999.0, 2000.0], (1, *size)).astype(np.float32)
    mask = generator.integers(0, 3, size).astype(np.uint8)
    found = viewed(array).outside_shares(mask)["MR"]
    values = array[0][mask > 0]
    if not len(values):
        assert found is None
    else:
        assert found == pytest.approx(np.isin(values, [10.0, 151.0, 999.0]).mean())


def test_lengths_are_canonical_and_of_the_nonzero_box() -> None:
    array = np.zeros((1, 5, 6, 7), np.float32)
    array[:, 1:4, 2:, 3:] = 100
    view = viewed(array)  # the file's first axis is the patient's anterior-posterior one
    assert view.spacing == (2.0, 3.0, 1.0)
    assert view.extent == (8.0, 9.0, 4.0)


def test_without_a_coverage_nothing_is_known() -> None:
    view = viewed(np.ones((1, 2, 3, 4), np.float32), known=False)
    assert view.outside_shares(np.ones((2, 3, 4), np.uint8)) == {"MR": None}


def test_how_far_a_length_is_beyond() -> None:
    assert [beyond(length, (1.0, 2.0)) for length in (1.0, 1.5, 2.0, 6.0, 0.25)] == [0, 0, 0, 3, 4]
