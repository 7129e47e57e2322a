"""Figures of numbers: what is drawn where, and the same figure for the same numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.report.case_scores import CaseDice
from fedsam_pipeline.report.curves import (
    MAX_DOTS,
    box_figure,
    dice_figure,
    loss_figure,
    progress_figure,
    progress_png,
    quartiles,
    round_records,
)
from fedsam_pipeline.report.style import site_style, svg_bytes
from fedsam_pipeline.report.tradeoff import RunCost, run_cost_figure
from tests.report.runs import final_line, round_lines

PNG = b"\x89PNG\r\n\x1a\n"
RECORDS = [{"event": "start"}, *round_lines(), final_line(0.75)]


def _cases(number: int = 5) -> list[CaseDice]:
    return [
        CaseDice(f"case_{i}", f"site_{'ab'[i % 2]}", {"organ": 0.5 + i / 1000, "lesion": None if i % 2 else 0.7}) for i in range(number)
    ]


def test_rounds_are_sorted_and_the_last_word_on_a_round_counts() -> None:
    records: list[dict[str, Any]] = [
        {"event": "round", "round": 2},
        {"event": "final"},
        {"event": "round", "round": 1, "x": 0},
        {"event": "round", "round": 1, "x": 1},
    ]
    assert round_records(records) == [{"event": "round", "round": 1, "x": 1}, {"event": "round", "round": 2}]


def test_progress_is_drawn_for_every_site(tmp_path: Path) -> None:
    loss_axes, dice_axes = progress_figure(RECORDS).axes
    assert [line.get_label() for line in loss_axes.get_lines()] == ["site_a", "site_b"]
    assert [line.get_label() for line in dice_axes.get_lines()] == ["site_a", "site_b", "mean of sites"]
    assert np.asarray(dice_axes.get_lines()[2].get_xdata()).tolist() == [1, 3]  # rounds 2 and 4 scored the models of rounds 1 and 3
    drawn = [np.asarray(points.get_offsets()).tolist() for points in dice_axes.collections]
    assert drawn == [[[4, pytest.approx(0.8)]], [[4, pytest.approx(0.7)]], [[4, 0.75]]]
    progress_png(RECORDS, tmp_path / "progress.png")
    first = (tmp_path / "progress.png").read_bytes()
    assert first.startswith(PNG)
    progress_png(RECORDS, tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes() == first


def test_the_page_has_the_same_curves_one_by_one() -> None:
    together = progress_figure(RECORDS).axes
    for figure, expected in ((loss_figure(RECORDS), together[0]), (dice_figure(RECORDS), together[1])):
        (ax,) = figure.axes
        assert [np.asarray(line.get_xydata()).tolist() for line in ax.get_lines()] == [
            np.asarray(line.get_xydata()).tolist() for line in expected.get_lines()
        ]


def test_progress_can_be_drawn_before_anything_happened(tmp_path: Path) -> None:
    progress_png([], tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(PNG)


def test_boxes_show_quartiles_whiskers_and_every_case() -> None:
    cases = _cases(20)
    (ax,) = box_figure(cases, "organ").axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["site_a", "site_b"]
    values = [each.classes["organ"] for each in cases if each.site == "site_a"]
    low, middle, high = quartiles([dice for dice in values if dice is not None])
    first = [np.asarray(line.get_ydata()) for line in ax.get_lines()[:6]]  # box, two whiskers, two caps, median
    assert {round(float(edge), 9) for edge in first[0]} == {round(low, 9), round(high, 9)}
    assert first[5].tolist() == pytest.approx([middle, middle])
    assert [len(np.asarray(dots.get_offsets())) for dots in ax.collections] == [10, 10]


def test_a_class_that_no_case_of_a_site_holds_is_said() -> None:
    (ax,) = box_figure(_cases(), "lesion").axes
    assert [words.get_text() for words in ax.texts] == ["absent"]


def test_many_cases_are_a_box_with_outliers_not_a_cloud() -> None:
    few, many = (box_figure(_cases(2 * number), "organ") for number in (MAX_DOTS, MAX_DOTS + 1))
    assert len(few.axes[0].collections) == 2 and not many.axes[0].collections
    assert len(svg_bytes(many)) < len(svg_bytes(few)) / 2


def test_all_classes_of_an_evaluation_share_one_axis() -> None:
    assert len({box_figure(_cases(), name).axes[0].get_ylim() for name in (None, "organ", "lesion")}) == 1


def test_figures_are_the_same_for_the_same_numbers() -> None:
    assert svg_bytes(box_figure(_cases(), None)) == svg_bytes(box_figure(_cases(), None))
    assert site_style(0) != site_style(8)


@pytest.mark.parametrize(("others", "scale"), [([], "linear"), ([RunCost("big", 0.8, 4, 900_000_000)], "log")])
def test_dice_against_bytes_numbers_the_runs(others: list[RunCost], scale: str) -> None:
    this = RunCost("this", 0.7, 4, 2_000_000)
    (ax,) = run_cost_figure([(1_000_000.0, 0.4), (1_500_000.0, 0.6)], this, others).axes
    assert [words.get_text() for words in ax.texts] == [str(number) for number in range(1, 2 + len(others))]
    assert np.asarray(ax.get_lines()[0].get_xydata()).tolist() == [[1.0, 0.4], [1.5, 0.6]]
    assert ax.get_xscale() == scale
