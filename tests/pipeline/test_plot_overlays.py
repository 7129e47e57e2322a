"""fedsam_plot_overlays on real files: one picture a case, raw and preprocessed, and every error."""

from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.volume import write_labels
from fedsam_pipeline.entrypoints.plot_overlays import main
from fedsam_pipeline.preprocessing.store import StoredCase
from tests.dataset.raw_for_tests import CASES, GRID, make_textured
from tests.entrypoints.planned import SITES, write_planned

RAW = "Dataset007_Tiny"


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"fedsam_{name}", str(tmp_path / name))


def names(folder: Path) -> set[str]:
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    return {path.stem for path in folder.glob("*.png")}


def test_every_raw_case_gets_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_textured(tmp_path / "raw")
    assert main([]) == 0
    folder = tmp_path / "preprocessed" / RAW / "overlays" / "raw"
    assert names(folder) == set(CASES)
    printed = capsys.readouterr().out
    assert printed.startswith(f"dataset {RAW}\n") and "3 pictures written" in printed and "stay at the site" in printed


def test_some_cases_of_one_channel_into_a_folder(tmp_path: Path) -> None:
    make_textured(tmp_path / "raw")
    assert main(["-d", "7", "-o", str(tmp_path / "one"), "-n", "2", "--channel", "1"]) == 0
    assert names(tmp_path / "one") == {"a1", "a2"}
    assert main(["-o", str(tmp_path / "many"), "-n", "9"]) == 0
    assert names(tmp_path / "many") == set(CASES)
    assert (tmp_path / "one" / "a1.png").read_bytes() != (tmp_path / "many" / "a1.png").read_bytes()


def test_a_case_with_faults_is_named_and_the_others_are_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(make_textured(tmp_path / "raw"))
    write_labels(dataset.label_path("a2"), np.full(GRID.size, 9, np.uint8), GRID)
    assert main(["-o", str(tmp_path / "out")]) == 1
    assert names(tmp_path / "out") == {"a1", "b1"}
    printed = capsys.readouterr().out
    assert "1 of 3 cases failed" in printed and "a2: the mask of a2 holds values that dataset.json does not name" in printed


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_preprocessed_case_gets_a_picture(tmp_path: Path, axis: int) -> None:
    folder = write_planned(tmp_path / "preprocessed", slice_axis=axis)
    assert main(["--preprocessed"]) == 0
    assert names(folder / "overlays" / "plans") == {case for cases in SITES.values() for case in cases}


def test_a_store_that_cannot_be_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_planned(tmp_path / "preprocessed")
    next(folder.glob("store_*/a_1.b2nd")).unlink()
    assert main(["--preprocessed", "-o", str(tmp_path / "out")]) == 1
    assert "a_1: an array of the preprocessed store cannot be read" in capsys.readouterr().out
    monkeypatch.setattr(StoredCase, "labels", property(lambda self: 1 // 0))
    assert main(["--preprocessed", "-o", str(tmp_path / "out")]) == 1
    assert any("ZeroDivisionError" in path.read_text() for path in (tmp_path / "out" / "logs").iterdir())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-d", "3"], "raw dataset 3 is missing"),
        (["--channel", "2"], "there is no such channel"),
        (["--preprocessed"], "there is no planned dataset"),
        (["-o", "file"], "cannot write a log file"),
    ],
)
def test_input_that_does_not_fit(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_textured(tmp_path / "raw")
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    assert main(flags) == 2
    assert words in capsys.readouterr().err


def test_a_plan_of_another_name_and_a_plan_of_the_raw_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_textured(tmp_path / "raw")
    folder = write_planned(tmp_path / "preprocessed")
    assert main(["--preprocessed", "-p", "nope", "-d", folder.name]) == 2
    shown = capsys.readouterr().err
    assert f"{folder.name} has no plan of this name" in shown and "plans plans" in shown and "-p nope" in shown
    assert main(["-p", "plans"]) == 2
    shown = capsys.readouterr().err
    assert "these flags would be ignored" in shown and "leave -p out" in shown
    assert not (tmp_path / "preprocessed" / RAW).exists()


def test_a_plan_without_its_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_planned(tmp_path / "preprocessed")
    for path in folder.glob("store_*/*"):
        path.unlink()
    assert main(["--preprocessed"]) == 2
    assert "no case is preprocessed for this plan" in capsys.readouterr().err
