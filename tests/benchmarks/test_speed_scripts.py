"""The scripts that compare speed, at sizes at which speed means nothing: what they compare agrees, and is kept."""

import json
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import inference, predict_profile, resampling
from benchmarks.ceiling import measure_ceiling
from benchmarks.made_up_ct import ct_volume
from benchmarks.reference.inference import plain_model, predict

SMALL_CEILING = partial(measure_ceiling, seconds=0.01, side=64)


def test_predictions_agree_and_the_lines_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference, "RESULTS", tmp_path / "inference.jsonl")
    monkeypatch.setattr(inference, "measure_ceiling", SMALL_CEILING)
    monkeypatch.setattr(inference, "peak_of", lambda *_: 1 << 20)  # a process of its own takes seconds
    sizes = ["--slices", "24", "--side", "32", "--air", "8", "--reference_slices", "3", "--tissue_slices", "5", "--turns", "1"]
    command = ["inference", "--base_model", "tiny_random", "--image_size", "28", *sizes]
    monkeypatch.setattr(sys, "argv", command)
    assert inference.main() == 0
    printed = capsys.readouterr().out
    assert "slices/s" in printed and "agree" in printed and "DISAGREE" not in printed
    record = json.loads((tmp_path / "inference.jsonl").read_text())
    assert record["seen"] < 24 and [row["name"] for row in record["rows"]] == [inference.REFERENCE, inference.WHOLE, inference.TISSUE]
    flop = {row["name"]: row["flop"] for row in record["rows"]}
    assert flop[inference.WHOLE] < flop[inference.TISSUE] < flop[inference.REFERENCE] / 4
    monkeypatch.setattr(sys, "argv", [*command, "--only", inference.REFERENCE])
    assert inference.main() == 0
    assert int(capsys.readouterr().out) >= 0


def test_the_reference_holds_the_whole_volumes_logits() -> None:
    model, volume = plain_model("tiny_random", 3, 28), torch.randn(6, 28, 28)
    logits, mask = predict(model, volume, [2, 3])
    assert logits.shape == (3, 6, 28, 28) and torch.equal(logits[:, 2:4].argmax(dim=0), mask)
    assert not logits[:, :2].any() and logits[:, 2:4].any()


def test_the_made_up_ct_has_air_at_its_ends() -> None:
    volume = ct_volume(12, 40, 3)
    assert volume[:3].max() < -900 and volume[-3:].max() < -900 and np.median(volume[6, 15:25, 15:25]) > 0


def test_resampled_images_masks_and_predictions_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resampling, "RESULTS", tmp_path / "resampling.jsonl")
    monkeypatch.setattr(resampling, "measure_ceiling", SMALL_CEILING)
    monkeypatch.setattr(resampling, "peak_of", lambda *_: 1 << 20)
    command = ["resampling", "--size", "10", "21", "32", "--classes", "3", "--turns", "1"]
    monkeypatch.setattr(sys, "argv", command)
    assert resampling.main() == 0
    printed = capsys.readouterr().out
    assert "the results agree" in printed and all(subject in printed for subject in resampling.SUBJECTS)
    assert len(json.loads((tmp_path / "resampling.jsonl").read_text())["rows"]) == 10
    monkeypatch.setattr(sys, "argv", [*command, "--only", "labels", "ours"])
    assert resampling.main() == 0
    assert int(capsys.readouterr().out) >= 0


def test_the_phases_of_a_prediction_are_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(predict_profile, "RESULTS", tmp_path / "profile.jsonl")
    sizes = ["--slices", "8", "--side", "30", "--air", "2"]
    monkeypatch.setattr(sys, "argv", ["predict_profile", "--base_model", "tiny_random", "--image_size", "28", *sizes])
    assert predict_profile.main() == 0
    record = json.loads((tmp_path / "profile.jsonl").read_text())
    assert len(record["phases"]) == 7 and all(seconds >= 0 for seconds in record["phases"].values())
    assert "the command, start to end" in capsys.readouterr().out


def test_make_bench_runs_scripts_that_exist() -> None:
    root = Path(__file__).parents[2]
    (line,) = re.findall(r"^BENCHES \?= (.*)$", (root / "Makefile").read_text(), flags=re.MULTILINE)
    assert [name for name in line.split() if not (root / "benchmarks" / f"{name}.py").is_file()] == []
