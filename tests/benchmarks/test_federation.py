"""The benchmarks of the federation, at tiny sizes and without processes of their own."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import federation, scaling
from benchmarks.many_sites import CASES, write_cohort
from benchmarks.nnunet import Run
from fedsam_pipeline.dataset.integrity import verify_case
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.pipeline import train, train_probe
from tests.pipeline.comparisons import DirectSimulation

SAID = {"seconds": 12.0, "bytes_up": 2e6, "bytes_down": 1e6, "worker_bytes": 1e9, "server_bytes": 5e8}


@pytest.fixture(autouse=True)
def _without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (train, train_probe):
        monkeypatch.setattr(module, "simulate", DirectSimulation())
        monkeypatch.setattr(module, "worker_peak_bytes", lambda: 1 << 30)


def test_an_estimate_may_be_off_by_thirty_percent_and_no_more() -> None:
    lines, near = federation.compare(SAID, SAID | {"seconds": 10.0})
    assert near and len(lines) == 6
    lines, near = federation.compare(SAID, SAID | {"seconds": 8.0})
    assert not near and lines[1].endswith("OFF")


def test_the_estimate_stands_beside_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(federation, "RESULTS", tmp_path / "results.jsonl")

    def here(command: list[str], variables: dict[str, str]) -> Run:
        monkeypatch.setattr(sys, "argv", ["federation", *command[5:]])
        capsys.readouterr()
        assert federation.main() == 0
        return Run(1.0, 1, capsys.readouterr().out)

    monkeypatch.setattr(federation, "timed", here)
    flags = ["--size", "tiny", "--base_model", "tiny_random", "--rounds", "2", "--local_steps", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["federation", *flags])
    assert federation.main() in (0, 1)  # by the clock
    (line,) = (tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()
    found = json.loads(line)
    for name in ("bytes_up", "bytes_down"):
        assert found["estimate"][name] == pytest.approx(found["run"][name], rel=0.3)
    assert found["run"]["overhead"] > 1 and found["dataset"] == "Dataset001_Demo"


def test_the_cohort_is_sound(tmp_path: Path) -> None:
    write_cohort(tmp_path / "Dataset001_ManySites", 3)
    dataset = load_raw_dataset(tmp_path / "Dataset001_ManySites")
    assert [len(cases) for cases in dataset.sites.values()] == [CASES] * 3
    for case in dataset.cases:
        verify_case(dataset, case)


def test_a_straight_line_is_found_again() -> None:
    runs = [{"sites": n, "round_seconds": 2 + 0.5 * n, "round_bytes": 300.0 * n, "rise_bytes": 1e6} for n in (4, 8, 16)]
    said = scaling.predicted(scaling.fit(runs), 64)
    assert said == {"round_seconds": pytest.approx(34), "round_bytes": pytest.approx(19200), "rise_bytes": pytest.approx(1e6)}


def test_more_and_more_sites_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(scaling, "RESULTS", tmp_path / "results.jsonl")
    monkeypatch.setattr(scaling, "SAMPLE_SECONDS", 0.001)

    def here(command: list[str], variables: dict[str, str]) -> Run:
        return Run(1.0, 1, json.dumps(scaling.measured(scaling.build_parser().parse_args(command[5:]))))

    monkeypatch.setattr(scaling, "timed", here)
    monkeypatch.setattr(sys, "argv", ["scaling", "--sites", "1", "2", "3", "--rank", "8", "--plot", str(tmp_path / "plot.svg")])
    assert scaling.main() == 0
    found = json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8"))
    assert [run["sites"] for run in found["runs"]] == [1, 2, 3]
    assert found["runs"][2]["round_bytes"] == pytest.approx(3 * found["runs"][0]["round_bytes"], rel=0.2)
    assert found["model"]["c_bytes_a_site"] > 0
    assert "3 sites, round_bytes:" in capsys.readouterr().out
    assert (tmp_path / "plot.svg").read_bytes().startswith(b"<?xml")
