"""The means over cases, classes and sites, worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.evaluation.summary import CaseScore, SiteDice, combine_sites, format_table, summarize, summarize_site
from fedsam_pipeline.files import write_json

PERFECT = [10, 0, 0]
HALF = [5, 5, 5]
ABSENT = [0, 0, 0]
WRONG = [0, 3, 0]


def _table(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def _score(case: str, site: str, *rows: list[int]) -> CaseScore:
    return CaseScore(case, site, f"gt/{case}.nii.gz", f"pred/{case}.nii.gz", _table(*rows), 1000, np.array([1.5, np.nan]))


CASES = [
    _score("b1", "site_b", WRONG, ABSENT),
    _score("a2", "site_a", HALF, PERFECT),
    _score("a1", "site_a", PERFECT, ABSENT),
]


def test_a_site_is_the_mean_over_cases_then_classes() -> None:
    site = summarize_site([_table(PERFECT, ABSENT), _table(HALF, PERFECT)])
    assert site.classes.tolist() == [0.75, 1.0]
    assert site.dice == pytest.approx(0.875)
    assert site.num_cases == 2
    assert site.absent.tolist() == [0, 1]


def test_a_class_that_no_case_has_is_left_out() -> None:
    site = summarize_site([_table(WRONG, ABSENT)])
    assert site.classes[0] == 0
    assert np.isnan(site.classes[1])
    assert site.dice == 0
    assert np.isnan(summarize_site([_table(ABSENT, ABSENT)]).dice)


def test_sites_count_alike_whatever_their_size() -> None:
    large = summarize_site([_table(PERFECT, PERFECT)] * 9)
    small = summarize_site([_table(WRONG, ABSENT)])
    nothing = summarize_site([_table(ABSENT, ABSENT)])
    together = combine_sites({"large": large, "small": small, "nothing": nothing})
    assert together.dice == 0.5
    assert together.classes.tolist() == [0.5, 1.0]
    assert together.num_cases == 11
    assert together.absent.tolist() == [1, 2]


def test_nothing_has_no_dice() -> None:
    with pytest.raises(ValueError, match="without scored cases"):
        summarize_site([])
    with pytest.raises(ValueError, match="no site"):
        combine_sites({})


def test_a_site_survives_the_trip_as_json() -> None:
    site = summarize_site([_table(WRONG, ABSENT)])
    sent = json.loads(json.dumps(site.to_dict(["anterior", "posterior"])))
    assert sent["classes"] == {"anterior": 0.0, "posterior": None}
    back = SiteDice.from_dict(sent, ["anterior", "posterior"])
    np.testing.assert_array_equal(back.classes, site.classes)
    assert (back.dice, back.num_cases, back.absent.tolist()) == (site.dice, 1, [0, 1])


def test_summary_has_the_shape_of_nnunet_and_ours_beside_it(tmp_path: Path) -> None:
    summary = summarize(CASES, ["anterior", "posterior"])
    write_json(tmp_path / "summary.json", summary)  # refuses NaN
    assert [row["case"] for row in summary["metric_per_case"]] == ["a1", "a2", "b1"]
    first = summary["metric_per_case"][0]
    assert first["reference_file"] == "gt/a1.nii.gz"
    assert first["prediction_file"] == "pred/a1.nii.gz"
    assert first["metrics"]["1"] == {"Dice": 1.0, "IoU": 1.0, "TP": 10, "FP": 0, "FN": 0, "TN": 990, "n_pred": 10, "n_ref": 10, "HD95": 1.5}
    assert first["metrics"]["2"]["Dice"] is None
    assert summary["mean"]["1"]["Dice"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert summary["mean"]["1"]["FP"] == pytest.approx((0 + 5 + 3) / 3)
    assert summary["mean"]["2"]["Dice"] == 1
    assert summary["foreground_mean"]["Dice"] == pytest.approx(0.75)
    assert summary["schema_version"] == 1
    assert summary["labels"] == {"anterior": 1, "posterior": 2}
    assert summary["sites"]["site_a"]["dice"] == pytest.approx(0.875)
    assert summary["sites"]["site_b"]["classes"] == {"anterior": 0.0, "posterior": None}
    assert summary["dice"] == summary["all_sites"]["dice"] == pytest.approx(0.4375)
    assert summary["rule"].startswith("Dice: mean over cases, then classes")


def test_the_table_shows_sites_classes_means_and_the_rule() -> None:
    lines = format_table(summarize(CASES, ["anterior", "posterior"])).splitlines()
    assert lines[0].split() == ["site", "cases", "anterior", "posterior", "mean", "HD95", "mm"]
    assert lines[2].split() == ["site_a", "2", "0.7500", "1.0000", "0.8750", "1.50"]
    assert lines[3].split() == ["site_b", "1", "0.0000", "-", "0.0000", "1.50"]
    assert lines[5].split() == ["mean", "3", "0.3750", "1.0000", "0.4375", "1.50"]
    assert lines[6].startswith("Dice: mean over cases")
    assert lines[7] == "absent in both masks, not counted (cases): posterior 2"
    assert lines[8].startswith("HD95: 95th percentile")


ONLY_FIRST = np.array([True, False])


def test_a_class_that_a_site_did_not_annotate_is_excluded_and_counted() -> None:
    partial = summarize_site([_table(HALF, WRONG), _table(ABSENT, PERFECT)], ONLY_FIRST)
    assert partial.classes[0] == 0.5
    assert np.isnan(partial.classes[1])
    assert (partial.dice, partial.absent.tolist(), partial.num_cases) == (0.5, [1, 0], 2)
    assert partial.excluded is not None and partial.excluded.tolist() == [0, 2]
    whole = summarize_site([_table(PERFECT, HALF)])
    together = combine_sites({"partial": partial, "whole": whole})
    assert together.classes.tolist() == [0.75, 0.5]
    assert together.dice == pytest.approx((0.5 + 0.75) / 2)
    assert together.excluded is not None and together.excluded.tolist() == [0, 2]
    sent = json.loads(json.dumps(together.to_dict(["anterior", "posterior"])))
    assert sent["excluded"] == {"anterior": 0, "posterior": 2}
    back = SiteDice.from_dict(sent, ["anterior", "posterior"])
    assert back.excluded is not None and back.excluded.tolist() == [0, 2]


def test_fully_annotated_sites_say_nothing_of_exclusion() -> None:
    assert "excluded" not in combine_sites({"a": summarize_site([_table(HALF, WRONG)])}).to_dict(["anterior", "posterior"])
    assert '"excluded"' not in json.dumps(summarize(CASES, ["anterior", "posterior"]))


def test_excluded_classes_stand_empty_in_the_summary(tmp_path: Path) -> None:
    partial = CaseScore("c1", "site_c", "gt", "pred", _table(HALF, WRONG), 1000, np.array([2.0, 9.0]), ONLY_FIRST)
    summary = summarize([*CASES, partial], ["anterior", "posterior"])
    write_json(tmp_path / "summary.json", summary)
    row = summary["metric_per_case"][-1]["metrics"]
    assert row["1"]["TP"] == 5
    assert set(row["2"].values()) == {None} and row["2"].keys() == row["1"].keys()
    assert summary["mean"]["2"] == summarize(CASES, ["anterior", "posterior"])["mean"]["2"]
    assert summary["sites"]["site_c"]["excluded"] == {"anterior": 0, "posterior": 1}
    assert "not annotated by their site, not scored (cases): posterior 1" in format_table(summary).splitlines()
    assert summary["hd95"]["sites"]["site_c"] == {
        "classes": {"anterior": 2.0, "posterior": None},
        "hd95": 2.0,
        "missing": {"anterior": 0, "posterior": 0},
    }


def test_regions_have_names_of_their_own(tmp_path: Path) -> None:
    summary = summarize(CASES, ["whole", "core"], ["(1, 2)", 2])
    assert summary["labels"] == {"whole": "(1, 2)", "core": 2}
    assert summary["mean"].keys() == summary["metric_per_case"][0]["metrics"].keys() == {"(1, 2)", "2"}
    assert summary["sites"]["site_a"]["classes"].keys() == {"whole", "core"}


def test_a_mask_without_the_class_has_no_distance_and_is_counted() -> None:
    """Absent in one mask is missing, absent in both is not; means are over cases, then classes, then unweighted over sites."""
    absent, found = [0, 0, 0], [4, 2, 2]
    cases = [
        CaseScore("a1", "site_a", "gt", "pred", np.array([found, [0, 7, 0]]), 100, np.array([2.0, np.nan])),
        CaseScore("a2", "site_a", "gt", "pred", np.array([found, absent]), 100, np.array([4.0, np.nan])),
        CaseScore("b1", "site_b", "gt", "pred", np.array([[0, 0, 5], found]), 100, np.array([np.nan, 7.0])),
        CaseScore("b2", "site_b", "gt", "pred", np.array([[0, 3, 5], found]), 100, np.array([8.0, 9.0])),
    ]
    summary = summarize(cases, ["anterior", "posterior"])
    rows = summary["hd95"]["sites"]
    assert rows["site_a"] == {"classes": {"anterior": 3.0, "posterior": None}, "hd95": 3.0, "missing": {"anterior": 0, "posterior": 1}}
    assert rows["site_b"] == {"classes": {"anterior": 8.0, "posterior": 8.0}, "hd95": 8.0, "missing": {"anterior": 1, "posterior": 0}}
    assert summary["hd95"]["all_sites"] == {
        "classes": {"anterior": 5.5, "posterior": 8.0},
        "hd95": 5.5,
        "missing": {"anterior": 1, "posterior": 1},
    }
    assert format_table(summary).splitlines()[-1] == "absent in one mask, no distance (cases): anterior 1, posterior 1"
