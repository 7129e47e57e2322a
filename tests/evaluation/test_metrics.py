"""Counts and scores of one pair of masks, against set arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedsam_pipeline.evaluation.metrics import RULE, counts, dice_from_counts, iou_from_counts

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=5)


@given(st.data())
def test_counts_equal_set_arithmetic(data: st.DataObject) -> None:
    num_classes = data.draw(st.integers(2, 5))
    shape = data.draw(SHAPES)
    labels = hnp.arrays(np.uint8, shape, elements=st.integers(0, num_classes - 1))
    reference, prediction = data.draw(labels), data.draw(labels)
    table = counts(reference, prediction, num_classes)
    assert table.shape == (num_classes - 1, 3)
    assert table.dtype == np.int64
    for label in range(1, num_classes):
        truth, found = reference == label, prediction == label
        expected = [(truth & found).sum(), (~truth & found).sum(), (truth & ~found).sum()]
        assert table[label - 1].tolist() == expected
        size = truth.sum() + found.sum()
        dice = float(dice_from_counts(table)[label - 1])
        if size == 0:
            assert np.isnan(dice)
            assert np.isnan(iou_from_counts(table)[label - 1])
        else:
            assert dice == pytest.approx(2 * (truth & found).sum() / size)
            assert iou_from_counts(table)[label - 1] == pytest.approx(dice / (2 - dice))


@given(st.data())
def test_groups_are_counted_as_one_class_and_ignored_voxels_not_at_all(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    reference = data.draw(hnp.arrays(np.int16, shape, elements=st.integers(0, 4)))  # 4 is ignored
    prediction = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)))
    groups = [(1, 2, 3), (2, 3), (3,)]
    table = counts(reference, prediction, 4, groups=groups, ignore=4)
    kept = reference != 4
    for row, group in zip(table, groups, strict=True):
        truth, found = np.isin(reference, group) & kept, np.isin(prediction, group) & kept
        assert row.tolist() == [(truth & found).sum(), (~truth & found).sum(), (truth & ~found).sum()]
    plain = counts(reference, prediction, 4, ignore=4)
    assert np.array_equal(plain, counts(reference, prediction, 4, groups=[(1,), (2,), (3,)], ignore=4))
    assert np.array_equal(plain, counts(reference[kept], prediction[kept], 4))


def test_a_perfect_mask_scores_one_and_false_positives_on_nothing_score_zero() -> None:
    mask = np.array([0, 1, 1, 2])
    assert dice_from_counts(counts(mask, mask, 3)).tolist() == [1, 1]
    assert dice_from_counts(counts(np.zeros(4, int), np.array([0, 1, 0, 0]), 3))[0] == 0
    assert np.isnan(dice_from_counts(counts(np.zeros(4, int), np.array([0, 1, 0, 0]), 3))[1])


def test_the_rule_says_what_happens() -> None:
    assert RULE == (
        "Dice: mean over cases, then classes, then unweighted over sites; absent in both = NaN, excluded and counted; "
        "false positives on an empty reference = 0"
    )


def test_masks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="different shapes"):
        counts(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(ValueError, match="prediction: values 0 to 2, expected 0 to 1"):
        counts(np.zeros(3, int), np.array([0, 1, 2]), 2)
    with pytest.raises(ValueError, match="reference: values -1 to 0"):
        counts(np.array([-1, 0]), np.array([0, 0]), 2)
