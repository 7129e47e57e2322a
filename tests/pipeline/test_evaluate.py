"""``fedsam_evaluate`` on real files: what it scores, what it writes, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.volume import Geometry, read_labels, write_labels
from fedsam_pipeline.entrypoints.evaluate import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline.evaluate import evaluate

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
LABELS = {"background": 0, "anterior": 1, "posterior": 2}


def _write(path: Path, array: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> None:
    z, y, x = array.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    write_labels(path, array, Geometry((z, y, x), spacing, (0.0, 0.0, 0.0), IDENTITY))


def _mask(*voxels: int) -> np.ndarray:
    array = np.zeros((2, 3, 4), np.uint8)
    array.ravel()[: len(voxels)] = voxels
    return array


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A raw dataset of three test cases at two sites, and predictions of them in ``tmp_path / "pred"``."""
    folder = tmp_path / "Dataset001_Demo"
    for case, truth, found in (("a1", (1, 1, 2), (1, 1, 2)), ("a2", (1, 1, 2), (1, 0, 2)), ("b1", (2, 2), (2, 1))):
        _write(folder / "labelsTs" / f"{case}.nii.gz", _mask(*truth))
        _write(tmp_path / "pred" / f"{case}.nii.gz", _mask(*found))
    _write(folder / "labelsTr" / "train.nii.gz", _mask(1))
    _describe(folder, sites={"site_a": ["train"]}, test_sites={"site_a": ["a1", "a2"], "site_b": ["b1"]})
    return folder


def _describe(folder: Path, **keys: Any) -> Path:
    content = {"channel_names": {"0": "MR"}, "labels": LABELS, "file_ending": ".nii.gz"} | keys
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "dataset.json"


def test_a_sites_own_label_values_are_mapped_before_scoring(dataset: Path, tmp_path: Path) -> None:
    expected, _ = evaluate(dataset, tmp_path / "pred")
    for path in (dataset / "labelsTs").iterdir():
        _write(path, np.array([0, 2, 1], np.uint8)[read_labels(path).array])  # this site numbers its classes the other way round
    (dataset / "site.toml").write_text('[labels]\n1 = "posterior"\n2 = "anterior"\n')
    assert evaluate(dataset, tmp_path / "pred")[0]["sites"] == expected["sites"]


def test_a_raw_dataset_is_scored_by_site(dataset: Path, tmp_path: Path) -> None:
    summary, path = evaluate(dataset, tmp_path / "pred")
    assert path == tmp_path / "pred" / "summary.json"
    assert json.loads(path.read_text()) == summary
    assert summary["labels"] == {"anterior": 1, "posterior": 2}
    site_a, site_b = summary["sites"]["site_a"], summary["sites"]["site_b"]
    assert site_a["classes"] == pytest.approx({"anterior": (1 + 2 / 3) / 2, "posterior": 1.0})
    assert site_b["classes"] == pytest.approx({"anterior": 0.0, "posterior": 2 / 3})
    assert summary["dice"] == pytest.approx(((1 + 2 / 3) / 4 + 0.5 + 1 / 3) / 2)
    first = summary["metric_per_case"][0]
    assert (first["case"], first["site"]) == ("a1", "site_a")
    assert first["prediction_file"].endswith("pred/a1.nii.gz")
    assert first["metrics"]["1"]["HD95"] == 0
    assert summary["metric_per_case"][1]["metrics"]["1"]["HD95"] == pytest.approx(0.9)  # distances 0, 0 and 1 mm
    assert first["reference_file"].endswith("labelsTs/a1.nii.gz")


def test_predictions_of_training_cases_are_scored_against_labelstr(dataset: Path, tmp_path: Path) -> None:
    _write(tmp_path / "val" / "train.nii.gz", _mask(1))
    summary, _ = evaluate(dataset, tmp_path / "val")
    assert summary["dice"] == 1
    assert list(summary["sites"]) == ["site_a"]


def test_a_folder_of_masks_finds_the_names_above_or_is_told(dataset: Path, tmp_path: Path) -> None:
    whole, _ = evaluate(dataset, tmp_path / "pred")
    above, _ = evaluate(dataset / "labelsTs", tmp_path / "pred", output=tmp_path / "scores.json")
    assert above == whole
    assert (tmp_path / "scores.json").is_file()
    moved = dataset / "labelsTs"
    moved.rename(tmp_path / "reference")
    description = tmp_path / "names.json"
    description.write_text(json.dumps({"labels": LABELS}))
    alone, _ = evaluate(tmp_path / "reference", tmp_path / "pred", dataset_json=description)
    assert list(alone["sites"]) == ["site_0"]
    assert alone["sites"]["site_0"]["num_cases"] == 3


def test_another_format_may_be_scored(dataset: Path, tmp_path: Path) -> None:
    for path in sorted((tmp_path / "pred").glob("*.nii.gz")):
        path.unlink()
    for case, voxels in (("a1", (1, 1, 2)), ("a2", (1, 1, 2)), ("b1", (2, 2))):
        _write(tmp_path / "pred" / f"{case}.nrrd", _mask(*voxels))
    assert evaluate(dataset, tmp_path / "pred")[0]["dice"] == 1


def test_missing_predictions_are_named_unless_the_user_does_not_mind(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "pred" / "a2.nii.gz").unlink()
    with pytest.raises(FedsamError, match="1 of 3 reference cases were not predicted") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "no mask for a2" in str(caught.value)
    assert "--chill" in str(caught.value)
    assert not (tmp_path / "pred" / "summary.json").exists()
    summary, _ = evaluate(dataset, tmp_path / "pred", allow_missing=True)
    assert [row["case"] for row in summary["metric_per_case"]] == ["a1", "b1"]


def test_predictions_of_something_else_are_refused(dataset: Path, tmp_path: Path) -> None:
    _write(tmp_path / "other" / "x.nii.gz", _mask(1))
    with pytest.raises(FedsamError, match="no prediction has the name of a reference mask"):
        evaluate(dataset, tmp_path / "other", allow_missing=True)


def test_another_grid_names_the_case(dataset: Path, tmp_path: Path) -> None:
    _write(tmp_path / "pred" / "a2.nii.gz", _mask(1), spacing=(3.0, 1.0, 1.1))
    with pytest.raises(FedsamError, match="case a2: the prediction has another grid than the reference") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "1.1" in str(caught.value)
    _write(tmp_path / "pred" / "a2.nii.gz", np.zeros((2, 3, 5), np.uint8))
    with pytest.raises(FedsamError, match="case a2"):
        evaluate(dataset, tmp_path / "pred")
    assert not (tmp_path / "pred" / "summary.json").exists()


@pytest.mark.parametrize("place", ["pred/b1.nii.gz", "Dataset001_Demo/labelsTs/b1.nii.gz"])
def test_unknown_label_values_name_the_case(dataset: Path, tmp_path: Path, place: str) -> None:
    _write(tmp_path / place, _mask(7, 2))
    with pytest.raises(FedsamError, match="case b1: a mask holds values that no label has") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "[7]" in str(caught.value)
    assert "background, anterior, posterior" in str(caught.value)
    assert place in str(caught.value)


def test_missing_and_empty_folders_are_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="a folder is missing"):
        evaluate(dataset, tmp_path / "nowhere")
    with pytest.raises(FedsamError, match="the reference folder is missing"):
        evaluate(tmp_path / "nowhere", tmp_path / "pred")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FedsamError, match="a folder holds no mask"):
        evaluate(dataset, tmp_path / "empty")
    _write(tmp_path / "pred" / "a1.nrrd", _mask(1))
    with pytest.raises(FedsamError, match="case a1 has two masks in one folder"):
        evaluate(dataset, tmp_path / "pred")


def test_a_description_that_does_not_help_is_refused(dataset: Path, tmp_path: Path) -> None:
    path = _describe(dataset, sites={"site_a": ["train"]}, test_sites={"site_a": ["a1"], "site_b": ["b1"]})
    with pytest.raises(FedsamError, match="reference cases belong to no site") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "a2" in str(caught.value)
    _describe(dataset, test_sites={"site_a": ["a1", "a2"], "site_b": ["b1", "a1"]})
    with pytest.raises(FedsamError, match="case a1 is in two sites") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "site_a and site_b" in str(caught.value)
    _describe(dataset, test_sites=["a1"])
    with pytest.raises(FedsamError, match="test_sites is not usable"):
        evaluate(dataset, tmp_path / "pred")
    _describe(dataset, labels={"background": 0, "anterior": 2})
    with pytest.raises(FedsamError, match="labels are not numbered as expected"):
        evaluate(dataset, tmp_path / "pred")
    path.write_text("{}")
    with pytest.raises(FedsamError, match="label names are not known"):
        evaluate(dataset, tmp_path / "pred")
    path.unlink()
    with pytest.raises(FedsamError, match="label names are not known") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "--dataset_json" in str(caught.value)


def test_the_command_prints_the_table_and_the_rule(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset), str(tmp_path / "pred")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["site", "cases", "anterior", "posterior", "mean", "HD95", "mm"]
    assert lines[2].split() == ["site_a", "2", "0.8333", "1.0000", "0.9167", "0.22"]
    assert any(line.startswith("Dice: mean over cases, then classes, then unweighted over sites") for line in lines)
    assert lines[-1] == f"written: {tmp_path / 'pred' / 'summary.json'}"


def test_the_command_ends_with_2_on_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere"), str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_site_is_not_scored_for_what_it_did_not_annotate(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sites: dict[str, Any] = {"sites": {"site_a": ["train"]}, "test_sites": {"site_a": ["a1", "a2"], "site_b": ["b1"]}}
    whole, _ = evaluate(dataset, tmp_path / "pred")
    _describe(dataset, **sites, site_labels={"site_b": ["posterior"]})
    assert main([str(dataset), str(tmp_path / "pred")]) == 0
    assert "not annotated by their site, not scored (cases): anterior 1" in capsys.readouterr().out
    summary = json.loads((tmp_path / "pred" / "summary.json").read_text())
    assert summary["sites"]["site_a"] == whole["sites"]["site_a"]
    site_b = summary["sites"]["site_b"]
    assert (site_b["classes"]["anterior"], site_b["excluded"]) == (None, {"anterior": 1, "posterior": 0})
    assert site_b["dice"] == site_b["classes"]["posterior"] == pytest.approx(2 / 3)
    assert summary["all_sites"]["classes"]["anterior"] == whole["sites"]["site_a"]["classes"]["anterior"]

    _describe(dataset, **sites, site_labels={"site_b": ["anterior"]})
    with pytest.raises(FedsamError, match="case b1: the reference mask holds classes that its site says it did not annotate") as caught:
        evaluate(dataset, tmp_path / "pred")
    assert "label value 2" in str(caught.value) and "labelsTs/b1.nii.gz" in str(caught.value)
    _describe(dataset, **sites, site_labels={"site_z": ["anterior"]})
    with pytest.raises(FedsamError, match="sites or classes that do not exist"):
        evaluate(dataset, tmp_path / "pred")


def test_ignored_voxels_are_not_scored(dataset: Path, tmp_path: Path) -> None:
    sites = {"test_sites": {"site_a": ["a1", "a2"], "site_b": ["b1"]}}
    _describe(dataset, labels=LABELS | {"ignore": 3}, **sites)
    _write(dataset / "labelsTs" / "b1.nii.gz", _mask(2, 3, 3))
    summary, _ = evaluate(dataset, tmp_path / "pred")  # predicted: 2 1
    row = summary["metric_per_case"][-1]["metrics"]
    assert (row["1"]["Dice"], row["2"]["Dice"]) == (None, 1)
    assert row["2"]["TP"] + row["2"]["TN"] == 24 - 2
    assert summary["labels"] == {"anterior": 1, "posterior": 2}
    _write(tmp_path / "pred" / "b1.nii.gz", _mask(2, 3))
    with pytest.raises(FedsamError, match="case b1: a mask holds values that no label has"):  # no model predicts it
        evaluate(dataset, tmp_path / "pred")


def test_regions_are_scored_as_regions(dataset: Path, tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": 2}
    sites = {"test_sites": {"site_a": ["a1", "a2"], "site_b": ["b1"]}}
    _describe(dataset, labels=labels, regions_class_order=[1, 2], **sites)
    summary, _ = evaluate(dataset, tmp_path / "pred")
    assert summary["labels"] == {"whole": "(1, 2)", "core": 2}
    assert summary["sites"]["site_a"]["classes"] == pytest.approx({"whole": (1 + 4 / 5) / 2, "core": 1})
    assert summary["sites"]["site_b"]["classes"] == pytest.approx({"whole": 1, "core": 2 / 3})
    assert summary["metric_per_case"][-1]["metrics"]["(1, 2)"]["TP"] == 2
    _describe(dataset, labels=labels, regions_class_order=[1, 2], site_labels={"site_b": ["core"]}, **sites)
    with_partial, _ = evaluate(dataset, tmp_path / "pred")
    assert with_partial["sites"]["site_b"]["classes"] == {"whole": None, "core": pytest.approx(2 / 3)}


def test_all_metrics_stand_in_the_summary_and_in_csv(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--nsd_tolerance", "2,0.5", "--lesion_iou", "0.5", "-o", str(tmp_path / "out" / "scores.json")]
    assert main([str(dataset), str(tmp_path / "pred"), *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = ("scores.csv", "scores_means.csv", "scores.json")
    assert lines[-3:] == [f"written: {tmp_path / 'out' / name}" for name in names]
    assert "NSD at 0.5, 2 mm (--nsd_tolerance); components are one lesion from IoU 0.5 on (--lesion_iou)" in lines
    assert any(line.startswith("0.5 mm is less than the longest voxel edge of 3 case(s)") for line in lines)
    summary = json.loads((tmp_path / "out" / "scores.json").read_text())
    case = summary["metric_per_case"][1]["metrics"]["1"]  # two voxels of 3 mm³, one found
    assert (case["VolumeError_ml"], case["VolumeError_rel"]) == (pytest.approx(-0.003), -0.5)
    assert (case["ASSD"], case["LesionF1"], case["NSD_2mm"]) == (pytest.approx(1 / 3), 1, 1)
    header, *rows = (tmp_path / "out" / "scores.csv").read_text().splitlines()
    assert header.startswith("case,site,class,Dice,IoU,") and len(rows) == 3 * 2
    assert (tmp_path / "out" / "scores_means.csv").read_text().startswith("metric,unit,site,class,value,low,high\n")
    assert not (tmp_path / "pred" / "summary.json").exists()


def test_the_default_tolerance_is_stated(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset), str(tmp_path / "pred")]) == 0
    assert "NSD at 2 mm" in capsys.readouterr().out
    summary = json.loads((tmp_path / "pred" / "summary.json").read_text())
    assert summary["settings"]["nsd_tolerances_mm"] == [2] and "NSD_2mm" in summary["scores"]
    assert "fed_kits" not in summary


@pytest.mark.parametrize("flags", [["--nsd_tolerance", "0"], ["--nsd_tolerance", "1,x"], ["--lesion_iou", "1.1"], ["--lesion_iou", "0"]])
def test_settings_outside_their_range_are_refused(dataset: Path, tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([str(dataset), str(tmp_path / "pred"), *flags])
    assert caught.value.code == 2
    assert not (tmp_path / "pred" / "summary.json").exists()


def test_the_composite_of_fed_kits(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(dataset), str(tmp_path / "pred"), "--fed_kits"]) == 0
    assert "Fed-KiTS composite (FLamby)" in capsys.readouterr().out
    summary = json.loads((tmp_path / "pred" / "summary.json").read_text())
    of_case = [row["fed_kits"] for row in summary["metric_per_case"]]
    assert of_case == pytest.approx([1, (4 / 5 + 1) / 2, (1 + 2 / 3) / 2])
    assert summary["fed_kits"]["all_sites"]["mean"]["value"] == pytest.approx(((of_case[0] + of_case[1]) / 2 + of_case[2]) / 2)

    sites = {"test_sites": {"site_a": ["a1", "a2"], "site_b": ["b1"]}}
    _describe(dataset, site_labels={"site_b": ["posterior"]}, **sites)
    partial, _ = evaluate(dataset, tmp_path / "pred", composite=True)
    assert partial["metric_per_case"][-1]["fed_kits"] is None  # kidney and tumor together are not known there
    assert partial["fed_kits"]["all_sites"]["mean"]["value"] == pytest.approx((of_case[0] + of_case[1]) / 2)

    _describe(dataset, labels=LABELS | {"third": 3}, **sites)
    with pytest.raises(FedsamError, match="the Fed-KiTS composite does not fit these labels") as caught:
        evaluate(dataset, tmp_path / "pred", composite=True)
    assert "third 3" in str(caught.value)


def test_a_summary_named_like_its_csv_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(FedsamError, match="the summary is JSON"):
        evaluate(dataset, tmp_path / "pred", output=tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


def test_regions_ignored_voxels_and_partial_labels_hold_for_every_metric(dataset: Path, tmp_path: Path) -> None:
    sites: dict[str, Any] = {"test_sites": {"site_a": ["a1", "a2"], "site_b": ["b1"]}}
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    _describe(dataset, labels=labels, regions_class_order=[1, 2], site_labels={"site_b": ["core"]}, **sites)
    _write(dataset / "labelsTs" / "b1.nii.gz", _mask(2, 3, 3))
    _write(tmp_path / "pred" / "b1.nii.gz", _mask(2, 1, 2))
    summary, _ = evaluate(dataset, tmp_path / "pred")
    whole, core = summary["metric_per_case"][-1]["metrics"].values()
    assert set(whole.values()) == {None}
    perfect = {"Dice": 1, "IoU": 1, "HD95": 0, "ASSD": 0, "NSD_2mm": 1, "VolumeError_ml": 0, "VolumeError_rel": 0, "LesionF1": 1}
    assert {name: core[name] for name in perfect} == perfect
    for name, scores in summary["scores"].items():
        site_b = scores["sites"]["site_b"]
        assert site_b["classes"]["whole"]["value"] is None and site_b["mean"] == site_b["classes"]["core"], name
        assert scores["all_sites"]["classes"]["whole"]["value"] == scores["sites"]["site_a"]["classes"]["whole"]["value"], name
