"""Rules on masks: what they may change, and what they must leave."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import generate_binary_structure, label

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.postprocessing.apply import apply_rules
from fedsam_pipeline.postprocessing.components import bounding_box, enclosed
from fedsam_pipeline.specs.postprocessing import MaskRule

LABELS = {"background": 0, "organ": 1, "lesion": 2}
LARGEST, LARGEST_ORGAN = MaskRule(kind="largest_component"), MaskRule(kind="largest_component", label="organ")
FILL = MaskRule(kind="fill_holes", label="organ")
MASKS = arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.sampled_from([0, 0, 0, 1, 1, 2]))
REMOVING = st.one_of(
    st.builds(MaskRule, kind=st.just("largest_component"), label=st.sampled_from([None, "organ", "lesion"])),
    st.builds(
        MaskRule, kind=st.just("minimum_volume"), label=st.sampled_from(["organ", "lesion"]), min_volume_mm3=st.floats(0.5, 40, width=16)
    ),
)
FILLING = st.builds(MaskRule, kind=st.just("fill_holes"), label=st.sampled_from(["organ", "lesion"]))
SPACING = (2.0, 0.5, 1.5)


def applied(mask: NDArray[np.uint8], *steps: MaskRule, spacing: tuple[float, ...] = SPACING) -> NDArray[np.uint8]:
    before = mask.copy()
    result = np.asarray(apply_rules(mask, spacing, steps, LABELS))
    assert np.array_equal(mask, before), "the input is left as it is"
    assert result.dtype == mask.dtype and result.shape == mask.shape
    return result


@given(MASKS, st.one_of(REMOVING, FILLING))
def test_a_rule_applied_twice_is_the_rule_applied_once(mask: NDArray[np.uint8], rule: MaskRule) -> None:
    once = applied(mask, rule)
    assert np.array_equal(applied(once, rule), once)


@given(MASKS, REMOVING)
def test_removing_never_adds_nor_relabels_and_touches_only_its_class(mask: NDArray[np.uint8], rule: MaskRule) -> None:
    result = applied(mask, rule)
    changed = result != mask
    assert not result[changed].any()
    if rule.label is not None:
        assert set(mask[changed]) <= {LABELS[rule.label]}


@given(MASKS, FILLING)
def test_filling_gives_background_alone_to_its_class_alone(mask: NDArray[np.uint8], rule: MaskRule) -> None:
    result = applied(mask, rule)
    changed = result != mask
    assert not mask[changed].any()
    assert set(result[changed]) <= {LABELS[str(rule.label)]}


@given(MASKS)
def test_of_the_largest_component_one_stays_whole_and_no_other_is_larger(mask: NDArray[np.uint8]) -> None:
    result = applied(mask, LARGEST_ORGAN) == 1
    numbers, count = label(mask == 1, generate_binary_structure(3, 3))
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)[1:]
    assert result.sum() == (sizes.max() if count else 0)
    assert label(result, generate_binary_structure(3, 3))[1] == min(count, 1)


@given(MASKS, st.floats(0.5, 60, width=16))
def test_components_stay_from_the_stated_volume_on(mask: NDArray[np.uint8], volume: float) -> None:
    result = applied(mask, MaskRule(kind="minimum_volume", label="lesion", min_volume_mm3=volume)) == 2
    numbers, count = label(mask == 2, generate_binary_structure(3, 3))
    for number in range(1, count + 1):
        component = numbers == number
        assert bool(result[component].all()) is bool(component.sum() * 1.5 >= volume)
        assert bool(result[component].any()) is bool(result[component].all())


@given(MASKS)
def test_what_lies_at_the_edge_of_the_volume_is_not_enclosed(mask: NDArray[np.uint8]) -> None:
    inside = enclosed(mask == 1)
    assert not (inside & (mask == 1)).any()
    inner = np.zeros_like(inside)
    inner[1:-1, 1:-1, 1:-1] = True
    assert not (inside & ~inner).any()


def test_components_that_touch_by_a_corner_are_one() -> None:
    mask = np.zeros((4, 4, 4), np.uint8)
    mask[0, 0, 0] = mask[1, 1, 1] = 1  # by a corner
    mask[3, 3, 3] = 1
    assert applied(mask, LARGEST).sum() == 2
    assert applied(mask, LARGEST)[3, 3, 3] == 0


def test_a_diagonal_gap_does_not_open_a_hole() -> None:
    mask = np.ones((5, 5, 5), np.uint8)
    mask[2, 2, 2] = 0
    mask[1, 1, 1] = mask[0, 0, 0] = 0  # a way to the edge by corners only
    filled = applied(mask, FILL)
    assert filled[2, 2, 2] == 1 and filled[1, 1, 1] == 1 and filled[0, 0, 0] == 0
    mask[2, 2, 1] = mask[2, 2, 0] = 0  # a tunnel by faces
    assert applied(mask, FILL)[2, 2, 2] == 0


def test_another_class_inside_a_hole_stays() -> None:
    mask = np.ones((5, 5, 5), np.uint8)
    mask[1:4, 1:4, 1:4] = 0
    mask[2, 2, 2] = 2
    filled = applied(mask, FILL)
    assert filled[2, 2, 2] == 2
    assert (filled == 1).sum() == 124


def test_all_foreground_is_one_whatever_its_classes() -> None:
    mask = np.zeros((1, 1, 9), np.uint8)
    mask[0, 0, :3] = [1, 2, 1]
    mask[0, 0, 5:7] = 1
    assert applied(mask, LARGEST).tolist() == [[[1, 2, 1, 0, 0, 0, 0, 0, 0]]]
    assert applied(mask, LARGEST_ORGAN).tolist() == [[[0, 2, 0, 0, 0, 1, 1, 0, 0]]]
    assert applied(mask, LARGEST, LARGEST_ORGAN).tolist() == [[[1, 2, 0, 0, 0, 0, 0, 0, 0]]]  # of equals the first


def test_a_minimum_volume_means_the_same_on_every_grid() -> None:
    rule = MaskRule(kind="minimum_volume", label="organ", min_volume_mm3=0.3)
    coarse, fine = np.zeros((4, 4, 4), np.uint8), np.zeros((8, 8, 8), np.uint8)
    coarse[0, 0, :3] = 1  # 0.3 mm3 at 0.1 mm3 a voxel, whatever the last digit of the product
    fine[:2, :2, :6] = 1
    coarse[2, 2, 2] = fine[5:7, 5:7, 5:7] = 1
    assert applied(coarse, rule, spacing=(0.1, 1.0, 1.0)).sum() == 3
    assert applied(fine, rule, spacing=(0.05, 0.5, 0.5)).sum() == 24


def test_nothing_to_change_gives_the_mask_itself() -> None:
    mask = np.zeros((3, 3, 3), np.uint8)
    assert apply_rules(mask, (1, 1, 1), [LARGEST, FILL], LABELS) is mask
    mask[1] = 1
    assert apply_rules(mask, (1, 1, 1), [LARGEST, FILL], LABELS) is mask


def test_a_class_that_there_is_not_is_refused_before_anything_is_done() -> None:
    with pytest.raises(FedsamError, match="postprocessing is for classes that the model does not have") as caught:
        apply_rules(np.ones((2, 2, 2)), (1, 1, 1), [LARGEST, MaskRule(kind="fill_holes", label="liver")], LABELS)
    assert caught.value.found == "liver" and caught.value.expected == "organ, lesion"
    with pytest.raises(FedsamError, match="does not have"):
        apply_rules(np.ones((2, 2, 2)), (1, 1, 1), [MaskRule(kind="fill_holes", label="background")], LABELS)


@given(arrays(np.bool_, st.tuples(*[st.integers(1, 5)] * 3)))
def test_the_box_holds_the_mask_and_is_the_smallest(mask: NDArray[np.bool_]) -> None:
    box = bounding_box(mask)
    if box is None:
        assert not mask.any()
        return
    assert mask[box].sum() == mask.sum()
    for axis in range(3):
        ends = np.moveaxis(mask[box], axis, 0)
        assert ends[0].any() and ends[-1].any()
