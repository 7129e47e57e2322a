"""FLamby's composite by its formula."""

import numpy as np
import pytest

from fedsam_pipeline.evaluation.composite import fed_kits


def test_it_is_the_mean_of_both_dice() -> None:
    reference, prediction = np.array([0, 1, 1, 2, 2, 0]), np.array([0, 1, 2, 2, 0, 1])
    both = 2 * 3 / (4 + 4)  # 1, 2 against 0
    tumor = 2 * 1 / (2 + 2)
    assert fed_kits(reference, prediction) == pytest.approx((both + tumor) / 2)


def test_what_is_in_neither_mask_counts_zero_as_in_flamby() -> None:
    assert fed_kits(np.array([0, 1, 1]), np.array([0, 1, 1])) == 0.5
    assert fed_kits(np.array([0, 0]), np.array([0, 0])) == 0


def test_ignored_voxels_are_left_out() -> None:
    assert fed_kits(np.array([1, 2, 3, 3]), np.array([1, 2, 2, 1]), ignore=3) == 1


def test_other_values_are_refused() -> None:
    with pytest.raises(ValueError, match="values"):
        fed_kits(np.array([0, 3]), np.array([0, 1]))
