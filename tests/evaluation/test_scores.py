"""Means and intervals of every metric: the rule of the means, missing values, classes that a site did not annotate, text and CSV."""

import csv
import io
import json
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.evaluation.case_metrics import MetricSettings, measure
from fedsam_pipeline.evaluation.composite import fed_kits
from fedsam_pipeline.evaluation.metrics import counts
from fedsam_pipeline.evaluation.score_table import cases_csv, format_scores, scores_csv
from fedsam_pipeline.evaluation.scores import score_metrics
from fedsam_pipeline.evaluation.summary import CaseScore, summarize

NAMES = ("kidney", "tumor")
SPACING = (3.0, 1.0, 1.0)
SETTINGS = MetricSettings(nsd_tolerances=(1.0, 4.0))


def _case(name: str, site: str, seed: int, *, annotated: Any = None, empty: bool = False, composite: bool = False) -> CaseScore:
    generator = np.random.default_rng(seed)
    reference = np.zeros((5, 12, 12), np.uint8)
    reference[1:4, 2:8, 2:8] = 1
    reference[2, 4:6, 4:6] = 2
    prediction = np.roll(reference, generator.integers(-2, 3, 2), axis=(1, 2))
    if empty:
        prediction[prediction == 2] = 0
    groups = [(1,), (2,)]
    further = measure(reference, prediction, groups, SPACING, SETTINGS)
    distances = further.pop("HD95")
    kits = fed_kits(reference, prediction) if composite else None
    return CaseScore(name, site, "gt", "pred", counts(reference, prediction, 3), 720, distances, annotated, further, SPACING, kits)


def _summary(cases: list[CaseScore]) -> dict[str, Any]:
    summary = summarize(cases, NAMES) | score_metrics(cases, NAMES, SETTINGS)
    json.dumps(summary, allow_nan=False)
    return summary


CASES = [*(_case(f"a{i}", "site_a", i) for i in range(6)), *(_case(f"b{i}", "site_b", 10 + i) for i in range(3))]


def test_means_are_those_of_dice_and_hd95_elsewhere() -> None:
    summary = _summary(CASES)
    dice, hd95 = summary["scores"]["Dice"], summary["scores"]["HD95"]
    assert dice["all_sites"]["mean"]["value"] == pytest.approx(summary["dice"])
    assert hd95["all_sites"]["mean"]["value"] == pytest.approx(summary["hd95"]["all_sites"]["hd95"])
    for site, row in summary["sites"].items():
        assert dice["sites"][site]["mean"]["value"] == pytest.approx(row["dice"])
        for name in NAMES:
            assert dice["sites"][site]["classes"][name]["value"] == pytest.approx(row["classes"][name])
            assert hd95["sites"][site]["classes"][name]["value"] == pytest.approx(summary["hd95"]["sites"][site]["classes"][name])


def test_every_metric_has_intervals_everywhere_and_nnunets_rows_have_its_values() -> None:
    summary = _summary(CASES)
    expected = [metric.name for metric in SETTINGS.metrics]
    assert list(summary["scores"]) == list(summary["metrics"]) == expected
    for name, scores in summary["scores"].items():
        for row in (scores["all_sites"], *scores["sites"].values()):
            for entry in (row["mean"], *row["classes"].values()):
                assert entry["low"] <= entry["value"] + 1e-9 and entry["value"] <= entry["high"] + 1e-9, name
        of_class = [row["metrics"]["1"][name] for row in summary["metric_per_case"]]
        assert summary["mean"]["1"][name] == pytest.approx(np.mean(of_class))
    assert summary["settings"]["nsd_tolerances_mm"] == [1.0, 4.0]
    assert summary["settings"]["coarser_cases"] == [9, 0]


def test_a_single_case_has_no_interval() -> None:
    summary = _summary([*CASES, _case("c0", "site_c", 30)])
    row = summary["scores"]["ASSD"]["sites"]["site_c"]
    assert row["mean"]["value"] is not None and row["mean"]["low"] is row["mean"]["high"] is None
    assert summary["scores"]["ASSD"]["all_sites"]["mean"]["low"] is not None
    alone = _summary([_case("c0", "site_c", 30)])
    assert alone["scores"]["Dice"]["all_sites"]["classes"]["tumor"]["low"] is None


def test_missing_distances_are_counted_and_left_out() -> None:
    summary = _summary([*CASES, _case("b9", "site_b", 40, empty=True)])
    for name, scores in summary["scores"].items():
        assert scores["missing"] == {"kidney": 0, "tumor": 1 if name in ("HD95", "ASSD") else 0}, name
    assert summary["scores"]["NSD_4mm"]["sites"]["site_b"]["classes"]["tumor"]["value"] < 1
    without = _summary(CASES)
    for name in ("HD95", "ASSD"):
        found, before = (s["scores"][name]["sites"]["site_b"]["classes"]["tumor"] for s in (summary, without))
        assert found["value"] == pytest.approx(before["value"])


def test_a_class_that_a_site_did_not_annotate_is_in_no_metric() -> None:
    only_kidney = np.array([True, False])
    partial = [_case(f"c{i}", "site_c", 50 + i, annotated=only_kidney, empty=i == 0) for i in range(3)]
    summary, before = _summary([*CASES, *partial]), _summary(CASES)
    for name, scores in summary["scores"].items():
        row = scores["sites"]["site_c"]
        assert row["classes"]["tumor"] == {"value": None, "low": None, "high": None}, name
        assert row["mean"] == row["classes"]["kidney"], name
        assert scores["all_sites"]["classes"]["tumor"]["value"] == pytest.approx(
            before["scores"][name]["all_sites"]["classes"]["tumor"]["value"]
        )
        assert scores["missing"]["tumor"] == 0, name
        assert summary["mean"]["2"][name] == pytest.approx(before["mean"]["2"][name]), name
    assert set(summary["metric_per_case"][-1]["metrics"]["2"].values()) == {None}


def test_the_composite_is_a_mean_over_cases_then_sites() -> None:
    cases = [_case(f"{site}{i}", f"site_{site}", i, composite=True) for site in "ab" for i in range(3 if site == "a" else 5)]
    found = _summary(cases)["fed_kits"]
    means = [np.mean([case.fed_kits for case in cases if case.site == site]) for site in ("site_a", "site_b")]
    assert [found["sites"][site]["mean"]["value"] for site in ("site_a", "site_b")] == pytest.approx(means)
    assert found["all_sites"]["mean"]["value"] == pytest.approx(np.mean(means))
    assert found["all_sites"]["mean"]["low"] < np.mean(means) < found["all_sites"]["mean"]["high"]
    assert "Fed-KiTS composite" in format_scores(_summary(cases))
    assert "fed_kits" not in _summary(CASES)


def test_the_text_states_tolerances_thresholds_and_empty_masks() -> None:
    text = format_scores(_summary(CASES))
    lines = text.splitlines()
    assert lines[0].split() == ["metric", "mean", "95", "%", "interval", "kidney", "tumor", "missing"]
    assert "NSD at 1, 4 mm (--nsd_tolerance); components are one lesion from IoU 0.1 on (--lesion_iou)" in lines
    assert any(line.startswith("1 mm is less than the longest voxel edge of 9 case(s)") for line in lines)
    assert not any(line.startswith("4 mm") for line in lines)
    assert any(line.split()[:3] == ["HD95,", "ASSD", "excluded"] for line in lines)


def test_csv_has_a_line_a_case_and_class_and_a_line_a_mean() -> None:
    summary = _summary([*CASES, _case("b9", "site_b", 40, empty=True)])
    cases = list(csv.DictReader(io.StringIO(cases_csv(summary))))
    assert len(cases) == 10 * 2
    last = cases[-1]
    assert (last["case"], last["site"], last["class"], last["HD95"], last["Dice"]) == ("b9", "site_b", "tumor", "", "0.0")
    assert float(cases[0]["ASSD"]) == summary["metric_per_case"][0]["metrics"]["1"]["ASSD"]
    means = list(csv.DictReader(io.StringIO(scores_csv(summary))))
    assert len(means) == len(SETTINGS.metrics) * 3 * 3
    row = next(r for r in means if (r["metric"], r["site"], r["class"]) == ("ASSD", "site_a", "tumor"))
    assert row["unit"] == "mm"
    assert {key: float(row[key]) for key in ("value", "low", "high")} == summary["scores"]["ASSD"]["sites"]["site_a"]["classes"]["tumor"]
