"""The training-step benchmark at tiny sizes: both programs compute the same, and what is printed is kept."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import training_step
from benchmarks.ceiling import Ceiling, flop_counter
from benchmarks.training_step import Mode
from fedsam_pipeline.model import compilation
from fedsam_pipeline.model.attention import attend
from fedsam_pipeline.model.lora import LoRALinear
from tests.model.tiny_models import SMALL_VIT, TINY_VIT, register_small_vit

MODES = {
    "vit": Mode("flap_sam", SMALL_VIT, 64, batch=2, steps=1),
    "cached": Mode("late_lora_cached", SMALL_VIT, 64, batch=4, steps=2, baseline="flap_sam"),
    "tiny": Mode("default", TINY_VIT, 28, batch=2, steps=1),
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    register_small_vit(monkeypatch)
    monkeypatch.setattr(training_step, "MODES", MODES)
    monkeypatch.setattr(training_step, "measure_ceiling", lambda device, dtype: Ceiling(1e12, 1e10, str(dtype), device.type))


def test_all_products_are_counted() -> None:
    made = torch.nn.Linear(6, 12)
    layer = LoRALinear.from_linear(made, rank=2, alpha=2.0, targets={"q": torch.arange(12)}, generator=torch.Generator())
    with flop_counter() as counter:
        layer(torch.zeros(5, 6))
    assert counter.get_total_flops() == 2 * 5 * (6 * 12 + 6 * 2 + 2 * 12)
    with flop_counter() as counter:
        mixed = attend(torch.zeros(2, 3, 200, 8), torch.zeros(2, 3, 300, 8), torch.zeros(2, 3, 300, 4))
    assert counter.get_total_flops() == 2 * 2 * 3 * 200 * 300 * (8 + 4) and mixed.shape == (2, 3, 200, 4)


@pytest.mark.parametrize("groups", [1, 8])
def test_gradients_of_grouped_convolutions_are_counted_by_group(groups: int) -> None:
    convolution = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups)
    made = convolution(torch.zeros(2, 8, 5, 5, requires_grad=True)).sum()
    with flop_counter() as counter:
        made.backward()
    forward = 2 * 2 * 25 * 9 * 8 * (8 // groups)
    assert counter.get_total_flops() == 2 * forward  # of the input and of the weights


def test_every_mode_agrees_with_its_reference_and_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training_step, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(sys, "argv", ["training_step", "--modes", *MODES, "--turns", "1", "--only", "time"])
    assert training_step.main() == 0
    printed = capsys.readouterr().out
    assert printed.count("waiting for slabs") == 3 and "images/s" in printed
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["mode"] for line in lines] == list(MODES)
    for line in lines:
        *_, reference, ours = line["rows"]
        assert line["difference"] < 1e-4 and 0 < line["waited"] < 1
        assert line["rows"][0]["ratio"] == 1 and ours["flop"] > 0 and reference["flop"] > 0
    assert lines[1]["rows"][2]["flop"] < lines[1]["rows"][1]["flop"] < lines[1]["rows"][0]["flop"]  # the frozen half is not computed


def test_ours_compiled_stands_beside_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled with torch's "eager": tracing without the C++ compiler."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    torch._dynamo.reset()
    monkeypatch.setattr(training_step, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(training_step, "peak_of", lambda _, arguments: len(arguments[-1]))
    monkeypatch.setattr(sys, "argv", ["training_step", "--modes", "cached", "--turns", "1", "--compile"])
    assert training_step.main() == 0
    time, memory = (json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines())
    *_, ours, compiled = time["rows"]
    assert compiled["name"] == f"{ours['name']}, compiled" and compiled["flop"] == ours["flop"]
    assert set(memory["peak_bytes"]) == {"reference", "ours", "compiled"}
    monkeypatch.setattr(sys, "argv", ["training_step", "--modes", "vit", "--peak", "compiled"])
    assert training_step.main() == 0


def test_programs_that_disagree_end_with_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(training_step, "TOLERATED", 0.0)
    monkeypatch.setattr(sys, "argv", ["training_step", "--modes", "vit", "--turns", "1", "--only", "time"])
    assert training_step.main() == 1


def test_memory_is_measured_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(training_step, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(training_step, "peak_of", lambda _, arguments: {"reference": 6 << 20, "ours": 3 << 20}[arguments[-1]])
    monkeypatch.setattr(sys, "argv", ["training_step", "--modes", "vit", "--only", "memory"])
    assert training_step.main() == 0
    assert "reference 6 MiB, ours 3 MiB; ours 0.50 of the reference's" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.jsonl").read_text())["peak_bytes"] == {"reference": 6 << 20, "ours": 3 << 20}


def test_a_process_of_its_own_prints_what_a_turn_takes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for program in ("ours", "reference"):
        monkeypatch.setattr(sys, "argv", ["training_step", "--modes", "vit", "--peak", program])
        assert training_step.main() == 0
        assert int(capsys.readouterr().out.splitlines()[-1]) >= 0
