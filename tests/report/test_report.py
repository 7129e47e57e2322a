"""The report: figures that are the same for the same numbers, and a page that stands alone."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.evaluation.summary import CaseScore, summarize
from fedsam_pipeline.report.curves import dice_figure, progress_figure, progress_png, round_records
from fedsam_pipeline.report.html import write_report
from fedsam_pipeline.report.overlay import choose_cases, overlay_png
from fedsam_pipeline.report.style import site_style, svg_bytes
from tests.inference.plans_for_tests import make_plans

PNG = b"\x89PNG\r\n\x1a\n"


def _records() -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [{"event": "start"}]
    for number in range(1, 5):
        sites = {
            site: {"loss": 1 / number + shift, "num_examples": 8, "seconds": 1.0} for site, shift in (("site_a", 0.0), ("site_b", 0.1))
        }
        dice = {site: {"classes": {"anterior": number / 6}, "dice": number / 6} for site in sites}
        validated = number % 2 == 0
        records.append(
            {
                "event": "round",
                "round": number,
                "learning_rate": 1e-3,
                "sites": sites,
                "validation": dice if validated else {},
                "validated_round": number - 1 if validated else None,
                "dice": number / 6 if validated else None,
                "bytes_up": 1_000_000,
                "bytes_down": 2_000_000,
            }
        )
    final = {"site_a": {"dice": 0.8}, "site_b": {"dice": 0.7}}
    return [*records, {"event": "final", "round": 4, "validation": final, "dice": 0.75}]


def _summary(num_cases: int = 5) -> dict[str, Any]:
    scores = [
        CaseScore(
            f"case_{i}", f"site_{'ab'[i % 2]}", "gt", "pred", np.array([[10 + i, 4, 9 - i], [0, 0, 0]]), 1000, np.array([2.0, np.nan])
        )
        for i in range(num_cases)
    ]
    return summarize(scores, ["anterior", "post<erior"])


def test_rounds_are_sorted_and_the_last_word_on_a_round_counts() -> None:
    records: list[dict[str, Any]] = [
        {"event": "round", "round": 2},
        {"event": "final"},
        {"event": "round", "round": 1, "x": 0},
        {"event": "round", "round": 1, "x": 1},
    ]
    assert round_records(records) == [{"event": "round", "round": 1, "x": 1}, {"event": "round", "round": 2}]


def test_progress_is_drawn_for_every_site(tmp_path: Path) -> None:
    figure = progress_figure(_records())
    loss_axes, dice_axes = figure.axes
    assert [line.get_label() for line in loss_axes.get_lines()] == ["site_a", "site_b"]
    assert [line.get_label() for line in dice_axes.get_lines()] == ["site_a", "site_b", "mean of sites"]
    assert np.asarray(dice_axes.get_lines()[2].get_xdata()).tolist() == [1, 3]  # rounds 2 and 4 scored the models of rounds 1 and 3
    assert [np.asarray(points.get_offsets()).tolist() for points in dice_axes.collections] == [[[4, 0.8]], [[4, 0.7]], [[4, 0.75]]]
    progress_png(_records(), tmp_path / "progress.png")
    first = (tmp_path / "progress.png").read_bytes()
    assert first.startswith(PNG)
    progress_png(_records(), tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes() == first


def test_progress_can_be_drawn_before_anything_happened(tmp_path: Path) -> None:
    progress_png([], tmp_path / "progress.png")
    assert (tmp_path / "progress.png").read_bytes().startswith(PNG)


def test_figures_are_the_same_for_the_same_numbers() -> None:
    assert svg_bytes(dice_figure(_summary())) == svg_bytes(dice_figure(_summary()))
    assert site_style(0) != site_style(8)


def test_worst_median_and_best_cases_are_chosen() -> None:
    assert choose_cases(_summary()) == [
        ("worst, Dice 0.606", "case_0"),
        ("median, Dice 0.686", "case_2"),
        ("best, Dice 0.757", "case_4"),
    ]
    assert [case for _, case in choose_cases(_summary(1))] == ["case_0"]
    assert choose_cases({"metric_per_case": [{"case": "a", "metrics": {"1": {"Dice": None}}}]}) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_overlay_is_a_picture(axis: int) -> None:
    image = np.random.default_rng(0).normal(size=(5, 12, 10)).astype(np.float32)
    labels = np.zeros(image.shape, np.uint8)
    labels[3, 3:8, 2:7] = 1
    png = overlay_png(image, labels, np.roll(labels, 1, 2), class_names=["a"], spacing=(3.0, 1.0, 1.0), axis=axis, title="worst")
    assert png.startswith(PNG)
    assert overlay_png(image, None, np.zeros_like(labels), class_names=["a"]).startswith(PNG)
    with pytest.raises(ValueError, match="different shapes"):
        overlay_png(image, labels[1:], labels, class_names=["a"])


class _Checker(HTMLParser):
    """Collects tags and checks that they are closed in order."""

    void = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Dataset001_Demo" / "flap_sam__plans__main" / "federated__fedavg__seed0" / "fold_0"
    (folder / "validation").mkdir(parents=True)
    why = {"target_spacing": "median <spacing>", "training.rounds": "few cases", "gone": "a reason without a value"}
    make_plans(why=why).save(folder / "plans.json")
    (folder / "progress.jsonl").write_text("\n".join(json.dumps(record) for record in _records()) + "\n")
    (folder / "run.json").write_text(
        json.dumps({"status": "done", "versions": {"torch": "2.13"}, "arguments": {"device": None, "c": False}})
    )
    (folder / "validation" / "summary.json").write_text(json.dumps(_summary()))
    return folder


def test_the_page_stands_alone_and_holds_everything(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    path = write_report(folder, overlays=[("worst & first", PNG)])
    assert path == folder / "report.html"
    page = path.read_text(encoding="utf-8")
    checker = _Checker()
    checker.feed(page)
    assert not checker.open
    assert "script" not in checker.tags
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    for text in (
        "<h1>Dataset001_Demo</h1>",
        "federated__fedavg__seed0 · fold_0",
        "post&lt;erior",
        "median &lt;spacing&gt;",
        "few cases",
        "a reason without a value",
        "worst &amp; first",
        "12.00 MB",
        "versions.torch",
        "Dice: mean over cases, then classes",
        "Validation: worst site, site_a",
        "post&lt;erior 5",
    ):
        assert text in page, text
    assert "<spacing>" not in page


def test_a_summary_without_cases_is_a_table(tmp_path: Path) -> None:
    folder = _run_folder(tmp_path)
    summary = _summary()
    summary.pop("metric_per_case")
    summary.pop("labels")
    nothing = {"schema_version": 1, "rule": "rule", "sites": {}, "dice": None}
    page = write_report(folder, summaries=[("Validation", summary), ("Test", nothing)]).read_text(encoding="utf-8")
    assert "<td>mean of sites</td>" in page
    assert "Every dot is a case" not in page
    assert "No case was validated" in page


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "fold_0").mkdir()
    page = write_report(tmp_path / "fold_0", output=tmp_path / "page.html").read_text(encoding="utf-8")
    assert "No round has been finished yet" in page
    assert "There is no plans.json" in page
    assert "There is no run.json" in page


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="the run folder is missing"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "progress.jsonl").write_text('{"event": "round"}\nnot json\n')
    with pytest.raises(FedsamError, match="a line of the progress file is not JSON") as caught:
        write_report(tmp_path)
    assert "line 2" in str(caught.value)
