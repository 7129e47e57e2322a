"""What the benchmark scripts compute apart from running the reference: the comparison, the cohort, the clock."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import encryption, predict_memory, privacy_cost
from benchmarks.ct_cohort import write_cohort
from benchmarks.nnunet import timed
from benchmarks.nnunet_fingerprint import compare
from benchmarks.surface_metrics import PAIRS, TOLERATED, measure
from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.raw import load_raw_dataset


def test_the_comparison_takes_one_percent_and_no_more() -> None:
    ours = {"spacing": [1.0, 1.0], "mean": 100.0}
    assert compare(ours, {"spacing": [1.0, 1.0], "mean": 100.9})[1]
    assert not compare(ours, {"spacing": [1.0, 1.0], "mean": 101.1})[1]
    lines, agree = compare(ours, {"spacing": [1.0, 2.0], "mean": 100.0})
    assert not agree and "DIFFERS" in lines[1]


def test_the_ct_cohort_is_sound_and_looks_like_ct(tmp_path: Path) -> None:
    folder = tmp_path / "Dataset002_ProceduralCT"
    write_cohort(folder, cases=2, side=64, slices=20)
    dataset = load_raw_dataset(folder)
    assert dataset.channel_names == ("CT",)
    assert [len(cases) for cases in dataset.sites.values()] == [1, 1]
    for case in dataset.cases:
        image, labels = verify_case(dataset, case)
        assert image.array.min() < -900 and 0 < np.median(image.array[0][labels.array == 1]) < 200
        assert image.geometry.spacing[0] > 3 * image.geometry.spacing[1]


def test_a_timed_command_reports_its_memory_and_its_failure() -> None:
    run = timed([sys.executable, "-c", "print('seen'); x = bytearray(50 << 20)"], {})
    assert run.output.strip() == "seen" and run.seconds > 0 and run.peak_bytes > 50 << 20
    with pytest.raises(RuntimeError, match=r"exit code 3[\s\S]*said why"):
        timed([sys.executable, "-c", "import sys; print('said why'); sys.exit(3)"], {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_surface_programs_measure_the_same_thing() -> None:
    found = {f"{who} {metric}": measure(f"{who} {metric}", side=24, repeats=1) for metric, library in PAIRS for who in ("ours", library)}
    assert found["ours hd95"]["value"] == pytest.approx(found["medpy hd95"]["value"], abs=TOLERATED["hd95"])
    assert found["ours nsd"]["value"] == pytest.approx(found["surface-distance nsd"]["value"], abs=TOLERATED["nsd"])
    assert 0 < found["ours nsd"]["value"] < 1 and found["ours hd95"]["value"] > 0


def test_the_memory_benchmark_predicts_its_own_images_with_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict_memory, "RESULTS", tmp_path / "results.jsonl")
    sizes = ["--size", "5", "24", "20", "--classes", "3", "--window", "28", "--image_size", "28", "--base_model", "tiny_random"]
    monkeypatch.setattr(sys, "argv", ["predict_memory", *sizes, "--folds", "2", "--tta", "--save_probabilities", "--max_memory", "4"])
    assert predict_memory.main() == 0
    printed = capsys.readouterr().out
    assert "1 image(s) of 5 x 24 x 20 voxels, 3 classes" in printed and "within 8 GB" in printed
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert 1e8 < record["peak_bytes"] < 8e9 and record["folds"] == 2


def test_the_noise_of_differential_privacy_shrinks_with_the_sites(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["privacy_cost", "--keep", str(tmp_path / "kept.jsonl"), "--epsilon", "1", "8", "--sites", "4", "400"])
    assert privacy_cost.main() == 0
    assert "293,332 values" in capsys.readouterr().out
    weak, strong = json.loads((tmp_path / "kept.jsonl").read_text())["rows"]
    assert weak["noise_multiplier"] > strong["noise_multiplier"]
    assert weak["noise_over_clip"]["4"] == pytest.approx(100 * weak["noise_over_clip"]["400"])


def test_the_encryption_benchmark_sums_what_it_drew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(encryption, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(sys, "argv", ["encryption", "--values", "5003", "--sites", "2"])
    assert encryption.main() == 0
    assert "5003 values, 2 sites\nencrypted" in capsys.readouterr().out
    (found,) = json.loads((tmp_path / "results.jsonl").read_text())["runs"]
    assert found["encrypted"]["largest_error"] < 1e-8 and found["fp32"]["largest_error"] == 0 < found["int4"]["largest_error"]
    assert found["encrypted"]["bytes"] > 10 * found["fp32"]["bytes"] / 2
