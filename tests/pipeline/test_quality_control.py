"""Quality control over the commands: the tiny cohort planned, two folds as training leaves them, images of other kinds."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedsam_pipeline.dataset.volume import read_image, write_image
from fedsam_pipeline.entrypoints.plan_and_preprocess import main as plan
from fedsam_pipeline.entrypoints.predict import main as predict
from fedsam_pipeline.pipeline import segmenter as segmenter_module
from fedsam_pipeline.pipeline.coverage_file import planned_coverage, write_coverage
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans
from fedsam_pipeline.specs.quality import QualityRow, QualityTable
from tests.pipeline.conftest import NAME
from tests.pipeline.test_predict import ThresholdFolds
from tests.pipeline.trained_runs import write_fold


@pytest.fixture
def model(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of two folds, and beside it ``imgs`` with two images of the cohort, the second one also in another intensity scale and with
    thick slices."""
    monkeypatch.chdir(root)
    assert plan(["-d", "1", "-m", "tiny_random", "-np", "1"]) == 0
    preprocessed = root / "preprocessed" / NAME
    plans = Plans.load(preprocessed / "plans.json")
    coverage = planned_coverage(Fingerprint.load(preprocessed / "fingerprint.json"), plans)
    assert coverage is not None
    for fold in range(2):
        write_coverage(write_fold(root / "run" / f"fold_{fold}", seed=fold, plans=plans), coverage)
    images = sorted((root / "raw" / NAME / "imagesTr").glob("*_0000.nii.gz"))
    (root / "imgs").mkdir()
    for path in images[:2]:
        volume = read_image([path])
        write_image(root / "imgs" / path.name, volume.array[0], volume.geometry)
    z, y, x = volume.geometry.spacing
    write_image(root / "imgs" / "scaled_0000.nii.gz", volume.array[0] * 1e4, volume.geometry)
    thick = replace(volume.geometry, spacing=(4 * z, y, x))
    write_image(root / "imgs" / "thick_0000.nii.gz", volume.array[0], thick)
    return root / "run"


def rows_of(folder: str) -> dict[str, QualityRow]:
    return {row.case: row for row in QualityTable.load(Path(folder) / "qc.json").cases}


def starts(row: QualityRow) -> list[str]:
    """Of the flags that are about the image."""
    return sorted(words for words in row.flags if "agree" not in words)


def test_images_of_another_kind_are_flagged_and_planned_ones_are_not(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(segmenter_module, "FoldModels", ThresholdFolds)  # finds what is bright
    assert predict(["-i", "imgs", "-m", str(model), "-device", "cpu", "--mirror_axes", "1", "-o", "masks"]) == 0
    assert "quality control: 2 of 4 case(s) flagged, the worst first in masks/qc.html" in capsys.readouterr().out
    rows = rows_of("masks")
    assert set(list(rows)[:2]) == {"scaled", "thick"}
    scaled, thick, *planned = (rows[case] for case in ("scaled", "thick", *sorted(set(rows) - {"scaled", "thick"})))
    assert [row.flags for row in planned] == [(), ()]
    assert len(scaled.flags) == 1 and "of the foreground's MRI intensities are not of the planned" in scaled.flags[0]
    assert scaled.outside == {"MRI": 1.0}
    assert scaled.foreground_voxels == planned[1].foreground_voxels > 0  # z-scored: the mask is the same all the same
    assert sorted(words[:9] for words in thick.flags) == ["extent z ", "spacing z"]
    assert all(row.folds_dice == row.mirrors_dice == {"organ": 1.0, "nodule": None} for row in rows.values())
    lines = list(csv.DictReader((Path("masks") / "qc.csv").open()))
    assert [line["case"] for line in lines] == list(rows)
    severities = [float(line["severity"]) for line in lines]
    assert severities == sorted(severities, reverse=True)
    log = next((Path("masks") / "logs").iterdir()).read_text()
    assert "WARNING" in log and f"scaled: {scaled.flags[0]}" in log


def test_folds_and_mirrored_images_that_disagree_are_flagged(model: Path) -> None:
    assert predict(["-i", "imgs", "-m", str(model), "-device", "cpu", "--mirror_axes", "1", "-o", "masks"]) == 0
    for row in rows_of("masks").values():  # of random weights
        assert set(row.folds_dice) == set(row.mirrors_dice) == {"organ", "nodule"}
        assert any(words.startswith("folds agree on organ at a mean Dice of 0.") for words in row.flags)
        assert any(words.startswith("mirrored images agree on ") for words in row.flags)


def test_one_fold_without_mirroring_leaves_the_columns_empty(model: Path) -> None:
    assert predict(["-i", "imgs", "-m", str(model), "-f", "0", "-o", "masks", "-device", "cpu", "--disable_tta"]) == 0
    lines = list(csv.DictReader((Path("masks") / "qc.csv").open()))
    assert {(line["folds_dice"], line["mirrors_dice"]) for line in lines} == {("", "")}
    assert not any(row.folds_dice or row.mirrors_dice for row in rows_of("masks").values())


def test_parts_and_continued_predictions_end_in_the_table_of_all(model: Path) -> None:
    command = ["-i", "imgs", "-m", str(model), "-f", "0", "-device", "cpu", "--disable_tta"]
    assert predict([*command, "-o", "whole"]) == 0
    for part in ("1", "0"):
        assert predict([*command, "-o", "parts", "-num_parts", "2", "-part_id", part]) == 0
    whole, parts = (Path(folder, "qc.json").read_bytes() for folder in ("whole", "parts"))
    assert parts == whole
    Path("parts/qc/.tmp-1-thick.json").write_text("{")  # of a process that is writing, or was killed
    Path("parts/thick.nii.gz").unlink()
    Path("parts/qc/thick.json").unlink()
    assert predict([*command, "-o", "parts", "--continue_prediction"]) == 0
    assert Path("parts/qc.json").read_bytes() == whole
    Path("parts/qc.json").unlink()  # killed after the last mask
    assert predict([*command, "-o", "parts", "--continue_prediction"]) == 0
    assert Path("parts/qc.json").read_bytes() == whole


def test_rows_of_another_model_go_with_its_masks(model: Path) -> None:
    command = ["-i", "imgs", "-m", str(model), "-device", "cpu", "--disable_tta"]
    assert predict([*command, "-f", "0", "-o", "masks"]) == 0
    Path("masks/qc.html").write_text("of the other model")
    assert predict([*command, "-f", "0", "1", "-o", "masks", "-num_parts", "2"]) == 0
    assert Path("masks/qc.html").read_text() != "of the other model"
    rows = rows_of("masks")
    assert len(rows) == 2 and all(row.folds_dice for row in rows.values())


def test_a_model_without_coverage_predicts_and_says_so(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for fold in ("fold_0", "fold_1"):
        (model / fold / "coverage.json").unlink()
    assert predict(["-i", "imgs", "-m", str(model), "-o", "masks", "-device", "cpu"]) == 0
    rows = rows_of("masks")
    assert all(set(row.outside.values()) == {None} and not starts(row) for row in rows.values())
    assert any(row.folds_dice for row in rows.values())
    assert "whether the plan covers an image is not known" in next((Path("masks") / "logs").iterdir()).read_text()


def test_a_single_mask_is_judged_in_the_log_only(model: Path) -> None:
    assert predict(["-i", "imgs/thick_0000.nii.gz", "-m", str(model), "-o", "one/thick.nii.gz", "-device", "cpu"]) == 0
    assert sorted(path.name for path in Path("one").iterdir()) == ["logs", "thick.json", "thick.nii.gz"]
    assert "spacing z" in next(Path("one/logs").iterdir()).read_text()


def test_a_coverage_of_another_plan_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = model / "fold_1" / "coverage.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint_sha256": "f" * 64}))
    assert predict(["-i", "imgs", "-m", str(model), "-o", "masks", "-device", "cpu"]) == 2
    assert "does not belong to its plan" in capsys.readouterr().err
    assert not Path("masks").exists()


def test_a_plan_of_another_fingerprint_covers_nothing_known(model: Path, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocessed = root / "preprocessed" / NAME
    other = Plans.load(preprocessed / "plans.json").model_copy(update={"fingerprint_sha256": "0" * 64})
    assert planned_coverage(Fingerprint.load(preprocessed / "fingerprint.json"), other) is None
    assert "predictions will not be told which images it covers" in caplog.text
    write_coverage(model / "fold_0", None)
    assert not (model / "fold_0" / "coverage.json").exists()
