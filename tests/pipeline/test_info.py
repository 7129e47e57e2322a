"""``fedsam_info``: one screen of what is there, and every fault in its place."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsam_pipeline.entrypoints.info import main
from fedsam_pipeline.model.registry import BASE_MODELS, base_model_spec
from fedsam_pipeline.pipeline import info as info_module
from fedsam_pipeline.pipeline.export_model import export_model
from fedsam_pipeline.pipeline.import_model import import_model
from fedsam_pipeline.pipeline.info import collect_info
from fedsam_pipeline.pipeline.info_text import info_text
from tests.dataset.raw_for_tests import make_raw
from tests.entrypoints.planned import write_planned
from tests.pipeline.trained_runs import RUN, write_fold

DATA = Path("fedsam_data")


@pytest.fixture(autouse=True)
def _own_cache(users_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", "cache")


def everything() -> None:
    """A raw dataset, a planned one, a run with one finished fold, one that was interrupted and one that is empty."""
    make_raw(DATA / "raw")
    write_planned(DATA / "preprocessed")
    write_fold(DATA / "results" / RUN / "fold_0")
    interrupted = DATA / "results" / RUN / "fold_1"
    (interrupted / "checkpoints" / "round_0003").mkdir(parents=True)
    (interrupted / "run.json").write_text('{"status": "interrupted", "rounds": 8}')
    (DATA / "results" / RUN / "fold_2").mkdir()


def screen(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_an_empty_machine(capsys: pytest.CaptureFixture[str]) -> None:
    text = screen(capsys)
    for words in (
        f"torch {torch.__version__}",
        "core(s)",
        "<- -device auto",
        "cache ($fedsam_cache)",
        "not there: lite_medsam, vit_b, vit_l, vit_h (fedsam_download_weights NAME)",
        "fedsam_data/raw (default), not there yet",
        "none yet: fedsam_make_demo_dataset makes one",
        "none yet: fedsam_train_federated, or fedsam_import_model",
    ):
        assert words in text, words
    assert "FAULT" not in text
    assert not list(Path().iterdir())


def test_one_screen_of_everything(capsys: pytest.CaptureFixture[str]) -> None:
    everything()
    before = sorted(Path().rglob("*"))
    text = screen(capsys)
    assert sorted(Path().rglob("*")) == before
    for words in (
        "Dataset007_Tiny: 3 and 1 test case(s), 2 site(s)",
        "class(es), not planned yet",
        "Dataset001_Demo: no raw images here",
        "plans: tiny_random at 28 px, 1 x 1 x 1 mm, slabs of 2, 2 x 2 steps, 5 case(s) preprocessed",
        f"{RUN}: fold 0 complete, Dice 0.6000\n",
        "  fold 1: interrupted, round 3 of 8\n",
        "  fold 2: empty, round 0\n",
    ):
        assert words in text, words
    assert "FAULT" not in text
    assert len(text.splitlines()) < 24 and max(map(len, text.splitlines())) < 140
    assert "files verified" in screen(capsys, "--verify")


def test_json_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    everything()
    found: dict[str, Any] = json.loads(screen(capsys, "--json"))
    assert found["schema_version"] == 1
    assert found["versions"]["torch"] == torch.__version__
    assert found["device"]["cores"] >= 1 and found["device"]["memory_bytes"] > found["device"]["free_memory_bytes"] > 0
    assert found["folders"]["raw"]["set_by"] is None and found["folders"]["raw"]["exists"]
    assert [dataset["name"] for dataset in found["datasets"]] == ["Dataset001_Demo", "Dataset007_Tiny"]
    (run,) = found["models"]
    assert [fold["complete"] for fold in run["folds"]] == [True, False, False]
    assert run["folds"][0] == {
        "fold": "0",
        "complete": True,
        "status": "done",
        "rounds_done": 2,
        "rounds": 2,
        "base_model": "tiny_random",
        "dice": 0.6,
    }


def test_an_imported_model_shows_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_fold(tmp_path / "elsewhere" / RUN / "fold_0")
    import_model(export_model(Path("x.zip"), model=tmp_path / "elsewhere" / RUN))
    assert f"{RUN}: fold 0 complete, Dice 0.6000" in screen(capsys)


def test_faults_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    everything()
    next((DATA / "raw" / "Dataset007_Tiny" / "labelsTr").iterdir()).unlink()
    (DATA / "raw" / "Dataset008_Empty").mkdir()
    (DATA / "preprocessed" / "Dataset001_Demo" / "broken.json").write_text("{")
    plan = DATA / "preprocessed" / "Dataset001_Demo" / "plans.json"
    (plan.parent / "old.json").write_text(json.dumps(json.loads(plan.read_text()) | {"schema_version": 0, "plans_name": "old"}))
    results = DATA / "results" / RUN
    for fold, damage in (("3", "bundle.json"), ("4", "adapter.safetensors")):
        shutil.copytree(results / "fold_0", results / f"fold_{fold}")
        (results / f"fold_{fold}" / damage).unlink()
    (results / "fold_3" / "run.json").write_text('"text"')
    shutil.copytree(results / "fold_0", results / "fold_5")
    (results / "fold_5" / "bundle.json").write_text("{}")
    Path("cache").mkdir()
    Path("cache/lite_medsam.pth").write_bytes(b"x")
    text = screen(capsys)
    for words in (
        "lite_medsam  FAULT a file of another size (lite_medsam.pth): 1 bytes, expected 39,370,479",
        "Dataset007_Tiny: FAULT",
        "Dataset008_Empty: FAULT a file is missing (dataset.json)",
        "broken: FAULT a file cannot be read as JSON (broken.json)",
        "old: FAULT not a valid Plans document (old.json): schema_version",
        "fold 3: FAULT a file holds no JSON object (run.json)",
        "fold 4: FAULT a trained fold lacks files (fold_4): adapter.safetensors",
        "fold 5: FAULT not a valid BundleInfo document (bundle.json)",
        "fold 0 complete, Dice 0.6000",
    ):
        assert words in text, words


def test_verify_finds_what_a_glance_does_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    everything()
    source = base_model_spec("lite_medsam").weights
    assert source is not None
    small = base_model_spec("lite_medsam").model_copy(update={"weights": source.model_copy(update={"num_bytes": 1})})
    monkeypatch.setitem(BASE_MODELS, "lite_medsam", small)
    Path("cache").mkdir()
    Path("cache/lite_medsam.pth").write_bytes(b"x")
    adapter = DATA / "results" / RUN / "fold_0" / "adapter.safetensors"
    content = bytearray(adapter.read_bytes())
    content[-1] ^= 1
    adapter.write_bytes(content)
    text = screen(capsys)
    assert "hash not checked (--verify)" in text and "FAULT" not in text
    text = screen(capsys, "--verify")
    assert "FAULT the weights of lite_medsam fail their hash check" in text
    assert "fold 0: FAULT an adapter fails its hash check (adapter.safetensors)" in text


def test_a_driver_that_fails_and_packages_that_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_number: int) -> dict[str, Any]:
        raise RuntimeError("CUDA error:\n out of order")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(info_module, "_gpu", broken)
    monkeypatch.setattr(info_module, "PACKAGES", ("torch", "no-such-package"))
    info = collect_info()
    assert info["device"]["gpus"] == [{"fault": "RuntimeError: CUDA error: out of order"}]
    text = info_text(info)
    assert "GPU 0: FAULT RuntimeError: CUDA error: out of order" in text
    assert "FAULT not installed: no-such-package" in text


def test_folders_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    monkeypatch.setenv("fedsam_results", "file/results")
    monkeypatch.setenv("fedsam_raw", "file")
    text = screen(capsys)
    assert "file/results ($fedsam_results), not there yet" in text
    assert text.count("FAULT not writable") == 2


def test_many_runs_stay_one_screen_and_faults_stay_visible(capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(40):
        (DATA / "results" / RUN.parent / f"federated__fedavg__seed{number:02d}" / "fold_0").mkdir(parents=True)
    (DATA / "results" / RUN.parent / "federated__fedavg__seed39" / "fold_0" / "bundle.json").write_text("{")
    text = screen(capsys)
    assert "and 33 more (--json shows all)" in text
    assert "FAULT a file cannot be read as JSON" in text
    assert len(text.splitlines()) < 32
