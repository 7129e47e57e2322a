"""The benchmark of prompts: its prompts mark the reference, and its table is made by one model."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import prompts
from fedsam_pipeline.dataset.geometry import Geometry
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.splits import make_splits
from fedsam_pipeline.dataset.synthetic import make_demo_dataset
from fedsam_pipeline.dataset.volume import Volume
from fedsam_pipeline.files import write_json
from fedsam_pipeline.inference.patient_prompts import volume_prompts
from fedsam_pipeline.preprocessing.preprocess import preprocess_image, preprocess_labels
from fedsam_pipeline.specs.plans import PromptPlan
from fedsam_pipeline.specs.prompts import PromptsFile
from tests.conftest import make_tiny_plans
from tests.pipeline.trained_runs import write_fold

NAME = "Dataset001_Demo"
TURNED = (0.0, 0.0, -1.0, 1.0, 0.0, 0.0, 0.0, -1.0, 0.0)


@pytest.mark.parametrize("mode", ["box", "point"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_exact_prompts_mark_the_reference(mode: Any, axis: int) -> None:
    geometry = Geometry((8, 9, 10), (1.0, 1.0, 1.0), (3.0, -4.0, 5.0), TURNED)
    labels = np.zeros(geometry.size, np.int16)
    labels[2:5, 3:8, 1:4], labels[1:3, 0:2, 6:9] = 1, 2
    plans = make_tiny_plans(prompts=PromptPlan(mode=mode, jitter_mm=0.0, dropout=0.5), slice_axis=axis)
    _, properties = preprocess_image(Volume(np.ones((1, *labels.shape), np.float32), geometry), plans)
    stored = preprocess_labels(Volume(labels, geometry), properties, plans)
    for whole in (True, False):
        marked = prompts.reference_prompts(Volume(labels, geometry), plans, np.random.default_rng(0), whole=whole)
        found = volume_prompts(PromptsFile.from_dict({"coordinates": "LPS", "cases": {"x": marked}}).of("x"), properties, plans)
        for label in (1, 2):
            places = np.argwhere(stored == label)
            own = [prompt for prompt in found if prompt.label == label]
            assert len(own) == (1 if whole else len(np.unique(places[:, 0])))
            if mode == "box":
                np.testing.assert_allclose(np.min([prompt.first for prompt in own], axis=0), places.min(axis=0), atol=1e-6)
                np.testing.assert_allclose(np.max([prompt.last for prompt in own], axis=0), places.max(axis=0), atol=1e-6)
            else:
                assert all(stored[tuple(round(place) for place in prompt.first)] == label for prompt in own)


def test_every_way_is_scored_on_the_folds_validation_cases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"fedsam_{name}", str(tmp_path / name))
    make_demo_dataset(tmp_path / "raw" / NAME, size="tiny")
    dataset = load_raw_dataset(tmp_path / "raw" / NAME)
    splits = make_splits(dataset.sites, dataset.patients)
    write_json(tmp_path / "preprocessed" / NAME / "splits_final.json", splits)
    plans = make_tiny_plans(
        prompts=PromptPlan(mode="box", jitter_mm=1.0, dropout=0.5), labels=dataset.labels, target_spacing=(3.0, 3.0, 3.0)
    )
    fold = write_fold(tmp_path / "results" / "fold_0", plans=plans)
    keep = tmp_path / "kept.jsonl"
    monkeypatch.setattr(sys, "argv", ["prompts", str(fold), "--cases", "2", "--device", "cpu", "--keep", str(keep)])
    assert prompts.main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[2:]] == list(prompts.WAYS)
    record = json.loads(keep.read_text())
    assert record["cases"] == 2 and record["dataset"] == NAME and list(record["found"]) == list(prompts.WAYS)
    assert len({json.dumps(found["sites"]) for found in record["found"].values()}) == 4
    monkeypatch.setattr(sys, "argv", ["prompts", str(write_fold(tmp_path / "results" / "fold_1")), "--keep", str(keep)])
    assert prompts.main() == 2
    assert "trained without prompts" in capsys.readouterr().err
