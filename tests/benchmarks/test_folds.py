"""Whether a federation is better for one site, over several folds: each run once, what is kept is not trained again."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import folds
from tests.pipeline.comparisons import DirectSimulation, make_planned


def test_the_cases_of_several_folds_are_compared_in_pairs_and_runs_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"fedsam_{name}", str(tmp_path / name))
    make_planned(tmp_path)
    simulation = DirectSimulation()
    monkeypatch.setattr("fedsam_pipeline.pipeline.train.simulate", simulation)

    def run(*flags: str) -> list[dict[str, Any]]:
        monkeypatch.setattr(sys, "argv", ["folds", "site_a", "--steps", "2", "--keep", str(tmp_path / "folds.jsonl"), *flags])
        assert folds.main() == 0
        return [json.loads(line) for line in (tmp_path / "folds.jsonl").read_text(encoding="utf-8").splitlines()]

    first = run("-f", "0", "--protocols", "local")
    assert [line["protocol"] for line in first] == ["local"] and first[0]["site"] == "site_a"
    assert "fold 0: not complete" in capsys.readouterr().out
    both = run("-f", "0", "1")
    assert both[:1] == first and [(line["fold"], line["protocol"]) for line in both[1:]] == [
        ("0", "federated"),
        ("1", "federated"),
        ("1", "local"),
    ]
    shown = capsys.readouterr().out
    trained = list(simulation.trained)
    assert run("-f", "0", "1") == both and simulation.trained == trained
    table = [line for line in shown.splitlines() if line.startswith("fold")]
    assert len(table) == 3 and capsys.readouterr().out.splitlines()[-3:] == table

    last = run("-f", "0", "--local_steps", "1", "--lr", "0.002", "--own_lr", "0.001")[len(both) :]
    assert [(line["protocol"], line["steps"], line["local_steps"], line["rate"]) for line in last] == [
        ("federated", 2, 1, 0.002),
        ("local", 2, both[0]["local_steps"], 0.001),
    ]

    capsys.readouterr()
    seeds = run("-f", "0", "--own_seeds", "2")[len(both) + len(last) :]
    assert [(line["protocol"], line["seed"]) for line in seeds] == [("local", 1)]
    twice = [folds.dice_of(line, "site_a") for line in (both[0], *seeds)]
    assert f"alone {np.mean(twice):.4f}" in capsys.readouterr().out

    before = len(both) + len(last) + len(seeds)
    capsys.readouterr()
    monkeypatch.setenv("fedsam_results", str(tmp_path / "longer"))
    adapted = run("-f", "0", "--adapt_steps", "2", "--adapt_lr", "0.003")[before:]
    assert [(line["protocol"], line["steps"], line["rate"]) for line in adapted] == [("local", 2, 0.003), ("local", 4, both[0]["rate"])]
    start = {key: both[1][key] for key in ("steps", "local_steps", "rate", "seed")}
    assert adapted[0]["start"] == start | {"interpolate": 1.0} and adapted[1]["start"] is None
    own, later = (folds.dice_of(adapted[which], "site_a").mean() for which in (1, 0))
    assert f"together {later:.4f}, alone {own:.4f}" in capsys.readouterr().out
    trained = list(simulation.trained)
    assert len(run("-f", "0", "--adapt_steps", "2", "--adapt_lr", "0.003")) == before + 2 and simulation.trained == trained
    half = run("-f", "0", "--adapt_steps", "2", "--adapt_lr", "0.003", "--interpolate", "0.5")[before + 2 :]
    assert [line["start"] for line in half] == [start | {"interpolate": 0.5}]
    with pytest.raises(SystemExit):  # of steps that are not there
        run("-f", "0", "--interpolate", "0.5")

    dice = {(line["fold"], line["protocol"]): folds.dice_of(line, "site_a") for line in both}
    pooled = [np.concatenate([dice["0", protocol], dice["1", protocol]]).mean() for protocol in ("federated", "local")]
    found = re.search(r"folds 0 1: (\d+) cases, together ([\d.]+), alone ([\d.]+), difference ([+-][\d.]+) \[", shown)
    assert found is not None and int(found[1]) == sum(len(dice[fold, "local"]) for fold in "01")
    assert float(found[2]) == pytest.approx(pooled[0], abs=1e-4) and float(found[3]) == pytest.approx(pooled[1], abs=1e-4)
    assert float(found[4]) == pytest.approx(pooled[0] - pooled[1], abs=1e-4)
