"""fedsam_convert_dataset, as a user types it."""

from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints.convert_dataset import main
from tests.dataset.test_convert_msd import make_task


def test_a_task_with_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task, sites = make_task(tmp_path), tmp_path / "sites.json"
    sites.write_text('{"a": ["case_001"], "b": ["case_002"]}')
    arguments = ["msd", str(task), "-d", "9", "-o", str(tmp_path / "raw"), "--sites", str(sites)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "Dataset009_Hippocampus" in out and "2 labelled and 1 test cases at 2 site(s)" in out
    assert out.endswith("next: fedsam_plan_and_preprocess -d 9\n")
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_defaults_and_a_missing_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("fedsam_raw", raising=False)
    assert main(["msd", str(make_task(tmp_path))]) == 0
    assert Path("fedsam_data/raw/Dataset004_Hippocampus/dataset.json").is_file()
    assert "using fedsam_data" in capsys.readouterr().out
    assert main(["msd", "Task05_Gone"]) == 2
    assert "a file is missing" in capsys.readouterr().err


def test_the_layout_must_be_named() -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
