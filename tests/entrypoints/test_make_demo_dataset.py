"""fedsam_make_demo_dataset, as a user types it."""

from pathlib import Path

import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.entrypoints.make_demo_dataset import main

pytestmark = pytest.mark.usefixtures("users_folder")


def test_in_an_empty_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "tiny"]) == 0
    out = capsys.readouterr().out
    folder = Path("fedsam_data/raw/Dataset001_Demo")
    assert len(load_raw_dataset(folder).cases) == 9
    assert "not set: using fedsam_data" in out and str(folder) in out
    assert "site_a 5+1, site_b 2+1, site_c 2+1" in out
    assert out.endswith("next: fedsam_plan_and_preprocess -d 1\n")
    assert main(["--size", "tiny"]) == 0  # the same cohort is left as it is


def test_output_number_and_overwrite(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["-d", "7", "-o", "raw", "--size", "tiny"]
    assert main(arguments) == 0
    assert "not set" not in capsys.readouterr().out
    assert main([*arguments, "--seed", "3"]) == 2
    assert "holds another dataset" in capsys.readouterr().err
    assert main([*arguments, "--seed", "3", "--overwrite"]) == 0
    Path("raw/Dataset008_Heart").mkdir()
    assert main(["-d", "8", "-o", "raw", "--size", "tiny"]) == 2
    assert "number 8 is taken" in capsys.readouterr().err


def test_the_environment_chooses_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("fedsam_raw", str(tmp_path / "mine"))
    assert main(["--size", "tiny"]) == 0
    assert (tmp_path / "mine" / "Dataset001_Demo" / "dataset.json").is_file()


def test_a_folder_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    Path("blocked").write_text("a file")
    assert main(["-o", "blocked/raw", "--size", "tiny"]) == 2
    assert "cannot create a folder" in capsys.readouterr().err
