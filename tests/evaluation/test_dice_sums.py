"""Sums of Dice: folds add up to the whole, means follow the rule of all tables, what another machine says is checked."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fedsam_pipeline.evaluation.dice_sums import Cell, DiceSums, add_sums, federated_dice
from fedsam_pipeline.evaluation.metrics import dice_from_counts
from fedsam_pipeline.evaluation.summary import combine_sites, summarize_site

NAMES = ("liver", "kidney")
Counts = NDArray[np.int64]


def counted(cases: int) -> st.SearchStrategy[Counts]:
    return hnp.arrays(np.int64, (cases, 2, 3), elements=st.integers(0, 4))


def sums(counts: dict[str, Counts]) -> DiceSums:
    return DiceSums.of_cases({name: dice_from_counts(table) for name, table in counts.items()}, NAMES)


@given(counted(4), counted(3))
def test_means_are_those_of_every_other_table(first: Counts, second: Counts) -> None:
    """But where no case has a Dice: that site is left out here, and has none there."""
    expected = combine_sites({"a": summarize_site(list(first)), "b": summarize_site(list(second))})
    told = {"b": sums({"x": second}), "a": sums({"x": first})}
    if not any(each.classes for each in told.values()):
        return
    found = federated_dice(told)["x"]
    assert math.isclose(found.dice, expected.dice, abs_tol=1e-12)
    for name, value in zip(NAMES, expected.classes, strict=True):
        assert math.isnan(value) if name not in found.classes else math.isclose(found.classes[name], value, abs_tol=1e-12)


@given(counted(3), counted(2), counted(1))
def test_folds_add_up_in_any_order(first: Counts, second: Counts, third: Counts) -> None:
    parts = [sums({"x": part, "y": part[:, ::-1]}) for part in (first, second, third)]
    whole = np.concatenate([first, second, third])
    assert set(add_sums(parts).classes) == set(sums({"x": whole, "y": whole[:, ::-1]}).classes) | set(add_sums(parts).classes)
    again = add_sums([add_sums(parts[::-1][:2]), parts[0]])
    for name, cell in add_sums(parts).cells["x"].items():
        assert again.cells["x"][name].cases == cell.cases
        assert math.isclose(again.cells["x"][name].total, cell.total, abs_tol=1e-12)


def test_the_best_comes_first_and_equals_keep_their_order() -> None:
    told = DiceSums({"single": {"liver": Cell(1.5, 2)}, "pair": {"liver": Cell(1.5, 2)}, "best": {"liver": Cell(1.8, 2)}})
    assert list(federated_dice({"a": told, "b": DiceSums({each: {} for each in told.cells})})) == ["best", "single", "pair"]


def test_classes_of_few_cases_stay() -> None:
    told = DiceSums({"x": {"liver": Cell(4.0, 5), "kidney": Cell(4.0, 5)}, "y": {"liver": Cell(4.0, 5), "kidney": Cell(3.0, 4)}})
    assert told.released(5).classes == ("liver",)
    assert told.released(6).cells == {"x": {}, "y": {}}


GOOD = {"x": {"liver": [1.5, 2]}, "y": {"liver": [0, 1]}}


@given(counted(3))
def test_what_is_told_is_what_is_read(table: Counts) -> None:
    told = sums({"x": table, "y": table[:, ::-1]})
    assert DiceSums.from_answer(told.to_dict(), configurations=("x", "y"), names=NAMES, most_cases=3) == told


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "does not answer"),
        ({"x": {"liver": [1.5, 2]}}, "does not answer"),
        (GOOD | {"z": {"liver": [1.5, 2]}}, "does not answer"),
        (GOOD | {"y": []}, "other classes"),
        (GOOD | {"x": []}, "other classes"),
        (GOOD | {"y": {"kidney": [0, 1]}}, "other classes"),
        ({"x": {"spleen": [0, 1]}, "y": {"spleen": [0, 1]}}, "other classes"),
        (GOOD | {"y": {"liver": 1}}, "cases of liver"),
        (GOOD | {"y": {"liver": [1.0]}}, "cases of liver"),
        (GOOD | {"y": {"liver": [1.0, True]}}, "cases of liver"),
        (GOOD | {"y": {"liver": [1.0, 2.0]}}, "cases of liver"),
        (GOOD | {"y": {"liver": [0.0, 0]}}, "0 cases of liver"),
        (GOOD | {"y": {"liver": [1.0, 4]}}, "4 cases of liver, there are 3"),
        (GOOD | {"y": {"liver": [-0.1, 2]}}, "a sum of -0.1"),
        (GOOD | {"y": {"liver": [2.1, 2]}}, "a sum of 2.1 over 2 cases"),
        (GOOD | {"y": {"liver": [float("nan"), 2]}}, "a sum of nan"),
        (GOOD | {"y": {"liver": [float("inf"), 2]}}, "a sum of inf"),
        (GOOD | {"y": {"liver": ["1", 2]}}, "a sum of '1'"),
        (GOOD | {"y": {"liver": [True, 2]}}, "a sum of True"),
    ],
)
def test_answers_that_cannot_be_are_refused(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DiceSums.from_answer(value, configurations=("x", "y"), names=NAMES, most_cases=3)
