"""The encoder benchmark at the smallest sizes, and its plain TinyViT."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import ceiling, encoders
from benchmarks.reference.tiny_vit import PlainTinyViT
from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.model.tiny_vit import TinyViT
from tests.model.tiny_models import SMALL_VIT, register_small_vit


@pytest.fixture(autouse=True)
def _small_and_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short look at the machine; results in ``tmp_path``; this process stays as it is."""
    register_small_vit(monkeypatch)
    monkeypatch.setattr(encoders, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(ceiling, "COPY_BYTES", 1 << 20)
    monkeypatch.setattr(encoders, "measure_ceiling", partial(ceiling.measure_ceiling, seconds=0.01, side=64))
    monkeypatch.setattr(encoders, "keep_freed_memory", lambda: False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


def test_it_compares_both_encoders_and_keeps_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(encoders.TOLERATED, torch.bfloat16, 0.5)  # of so small models
    cases = [f"{SMALL_VIT}:64:2", "tiny_random:28:2"]
    monkeypatch.setattr(sys, "argv", ["encoders", "--no_peaks", "--device", "cpu", "--turns", "2", "--cases", *cases])
    assert encoders.main() == 0
    assert "images/s" in capsys.readouterr().out
    record = json.loads((tmp_path / "results.jsonl").read_text())
    assert record["agree"] and {row["size"] for row in record["rows"]} == {f"{case} {kind}" for case in cases for kind in encoders.KINDS}
    assert all(row["flop"] > 0 and row["share"] > 0 for row in record["rows"])


def test_a_wrong_encoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "ours_of", lambda case, _: encoders.published(case).apply(lambda m: setattr(m, "scale", 2.0)))
    monkeypatch.setattr(
        sys, "argv", ["encoders", "--no_peaks", "--device", "cpu", "--turns", "1", "--kind", "forward", "--cases", f"{SMALL_VIT}:64:1"]
    )
    assert encoders.main() == 1


def test_peak_memory_is_the_last_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--device", "cpu", "--kind", "step", "--cases", "tiny_random:28:2", "--peak_of", "ours, float32"]
    monkeypatch.setattr(sys, "argv", ["encoders", *own])
    assert encoders.main() == 0
    assert int(capsys.readouterr().out.splitlines()[-1]) >= 0


def test_the_plain_tiny_vit_is_ours_before_folding() -> None:
    spec = base_model_spec("tiny_random")
    torch.manual_seed(0)
    plain = PlainTinyViT(spec).eval()
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand_like(tensor) * 0.3)
    shape = spec.encoder_shape
    ours = TinyViT(shape.embed_dims, shape.depths, shape.heads, shape.windows, spec.decoder_shape.dim).eval()
    ours.load_state_dict(plain.state_dict(), strict=True)
    images = torch.randn(2, 3, 56, 28)
    with torch.no_grad():
        expected = plain(images)
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)
        ours.fold_batch_norm()
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-5)
