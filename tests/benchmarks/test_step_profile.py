"""Operations are put into kinds, and a profile of a tiny step adds up."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import step_profile, training_step
from benchmarks.training_step import Mode


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products of matrices"),
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::native_layer_norm_backward", "normalization"),
        ("aten::_softmax", "GELU and softmax"),
        ("aten::copy_", "copies, casts and sums"),
        ("aten::_fused_adamw_", "optimizer and clipping"),
        ("aten::_foreach_norm", "optimizer and clipping"),
        ("aten::view", "other operations"),
    ],
)
def test_an_operation_has_a_kind(operation: str, kind: str) -> None:
    assert step_profile.kind_of(operation) == kind


def test_a_profile_of_a_tiny_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(step_profile, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setitem(training_step.MODES, "tiny", Mode("flap_sam", "tiny_random", 28, batch=2, steps=1))
    monkeypatch.setattr(sys, "argv", ["step_profile", "--modes", "tiny", "--steps", "2"])
    assert step_profile.main() == 0
    assert "tiny: 2 steps of 2 images" in capsys.readouterr().out
    seconds = json.loads((tmp_path / "results.jsonl").read_text())["seconds"]
    assert seconds["products of matrices"] > 0 and all(value >= 0 for value in seconds.values())
