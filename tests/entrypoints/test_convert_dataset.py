"""fedsam_convert_dataset, as a user types it."""

from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints.convert_dataset import main
from tests.dataset.test_convert_fets import make_release
from tests.dataset.test_convert_ixi import torchio_layout
from tests.dataset.test_convert_kits19 import SITES as KITS_SITES
from tests.dataset.test_convert_kits19 import make_clone
from tests.dataset.test_convert_msd import make_task
from tests.dataset.test_convert_prostate import make_collection


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


@pytest.mark.parametrize(
    ("layout", "words"),
    [
        ("msd", ("TaskXX_Name/dataset.json", "--sites FILE")),
        ("prostate", ("SITE/CaseNN_segmentation.nii.gz", "ISBI_1.5")),
        ("kits19", ("data/case_NNNNN/imaging.nii.gz", "--sites CSV", "--min_cases N", "anony_sites.csv")),
        ("ixi", ("image/IXI002-Guys-0828_image.nii.gz", "--split CSV")),
        ("fets", ("partitioning_1.csv", "--sites CSV", "{t1,t1ce,t2,flair,seg}")),
    ],
)
def test_help_shows_each_layout(layout: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([layout, "-h"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert not [word for word in (*words, "-d N", "-o FOLDER", "--overwrite", "docs/convert.md") if word not in text]


def test_each_layout_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, table, split = tmp_path / "raw", tmp_path / "sites.csv", tmp_path / "split.csv"
    table.write_text("case,site_id\n" + "".join(f"case_{number},{site}\n" for number, site in KITS_SITES.items()))
    split.write_text("Patient ID,Split\n2,test\n12,train\n13,train\n35,train\n")
    fets = make_release(tmp_path)
    for number, (arguments, words) in enumerate(
        [
            (["prostate", str(make_collection(tmp_path))], "12 labelled and 0 test cases at 6 site(s)"),
            (["kits19", str(make_clone(tmp_path)), "--sites", str(table), "--min_cases", "2"], "4 labelled and 1 test cases at 2 site(s)"),
            (["ixi", str(torchio_layout(tmp_path)), "--split", str(split)], "3 labelled and 1 test cases at 2 site(s)"),
            (["fets", str(fets)], "3 labelled and 0 test cases at 2 site(s)"),
            (["fets", str(fets), "--sites", str(fets / "partitioning_2.csv")], "3 labelled and 0 test cases at 3 site(s)"),
        ]
    ):
        assert main([*arguments, "-d", str(number), "-o", str(raw)]) == 0
        out = capsys.readouterr().out
        assert words in out and out.endswith(f"next: fedsam_plan_and_preprocess -d {number}\n")
    assert main(["prostate", str(fets), "-d", "9", "-o", str(raw)]) == 2
    assert "not laid out as expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["prostate", "IN"], ["kits19", "IN", "-d", "1"], ["kits19", "IN", "-d", "1", "--sites", "S", "--min_cases", "0"]]
)
def test_what_the_layouts_need(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_the_layout_must_be_named() -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
