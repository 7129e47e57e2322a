"""Dice of single cases: read from what training and evaluation write, and which cases are worth a look."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.evaluation.summary import CaseScore, summarize
from fedsam_pipeline.report.case_scores import CaseDice, choose_cases, evaluated, site_cases
from tests.report.runs import CLASSES, case_rows


def _cases(*dice: float | None) -> list[CaseDice]:
    return [CaseDice(f"case_{at}", "site_a", {"organ": value}) for at, value in enumerate(dice)]


def test_cases_of_training_have_the_dice_of_their_counts() -> None:
    documents = [{"cases": case_rows("site_b", 2)}, {"cases": [{"case": "x", "site": "site_a", "tp_fp_fn": [None, [1, 1, 1]]}]}]
    found = site_cases(documents, CLASSES)
    assert [each.site for each in found] == ["site_a", "site_b", "site_b"]
    assert found[0].classes == {"organ": None, "lesion": 0.5}  # its site did not annotate the organ
    assert found[1].classes == {"organ": pytest.approx(200 / 248), "lesion": None}  # absent in both masks
    assert found[1].mean == found[1].classes["organ"]


def test_an_evaluation_brings_its_own_cases() -> None:
    counts = np.array([[10, 4, 9], [0, 0, 0]])
    score = CaseScore("case_0", "site_a", "gt", "pred", counts, 1000, np.array([2.0, np.nan]))
    scores = evaluated("Dice on test images", summarize([score], CLASSES))
    (case,) = scores.cases
    assert (case.case, case.site, case.classes) == ("case_0", "site_a", {"organ": pytest.approx(20 / 33), "lesion": None})
    assert scores.without_cases().cases == () and scores.without_cases().summary is scores.summary


def test_worst_and_median_cases_are_chosen() -> None:
    cases = _cases(0.9, 0.1, None, 0.5, 0.7, 0.3)
    assert [(words, each.case) for words, each in choose_cases(cases)] == [("worst", "case_1"), ("median", "case_3")]
    assert [(words, each.classes["organ"]) for words, each in choose_cases(cases, 2)] == [
        ("worst", 0.1),
        ("2. worst", 0.3),
        ("near the median, 3. of 5", 0.5),
    ]
    assert [each.case for _, each in choose_cases(_cases(0.4))] == ["case_0"]
    assert choose_cases(_cases(None)) == []


@given(st.lists(st.floats(0, 1), max_size=12), st.integers(1, 5))
def test_no_case_comes_twice_and_the_worst_come_first(dice: list[float], number: int) -> None:
    chosen = [each for _, each in choose_cases(_cases(*dice), number)]
    assert len({each.case for each in chosen}) == len(chosen) <= 2 * number
    assert [each.mean for each in chosen[:number]] == sorted(dice)[:number]
