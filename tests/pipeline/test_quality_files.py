"""Rows and tables of a quality control on disk."""

import csv
import io
from multiprocessing import get_context
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline.quality_files import quality_csv, row_path, write_tables
from fedsam_pipeline.specs.quality import QualityTable
from tests.report.test_quality_page import make_row


def keep(folder: Path, case: str, severity: float) -> None:
    row = make_row(case, severity)
    row.save(row_path(folder / row.mask, case))
    (folder / row.mask).touch()


def cases_of(folder: Path) -> list[str]:
    return [row.case for row in QualityTable.load(folder / "qc.json").cases]


def test_the_worst_stand_first_and_rows_of_other_processes_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep(tmp_path, "a", 0.2)
    keep(tmp_path, "b", 2.0)
    write_tables(tmp_path)
    assert cases_of(tmp_path) == ["b", "a"]
    keep(tmp_path, "c", 1.5)
    keep(tmp_path, "d", 0.2)
    write_tables(tmp_path)
    assert cases_of(tmp_path) == ["b", "c", "a", "d"]
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"quality control: 2 of 4 case(s) flagged, the worst first in {tmp_path / 'qc.html'}"
    )
    (tmp_path / "b.nii.gz").unlink()
    write_tables(tmp_path)
    assert cases_of(tmp_path) == ["c", "a", "d"]
    assert [line["case"] for line in csv.DictReader(io.StringIO((tmp_path / "qc.csv").read_text()))] == ["c", "a", "d"]
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"]


def test_the_csv_has_a_column_a_measure_and_empty_cells_for_what_is_not_known() -> None:
    rows = [make_row("a, b", 2.0), make_row("c", 0.5, folds_dice={}, mirrors_dice={"organ": None, "lesion": 0.75}, outside={"T1": 0.5})]
    lines = list(csv.DictReader(io.StringIO(quality_csv(rows))))
    assert lines[0] == {
        "case": "a, b",
        "mask": "a, b.nii.gz",
        "severity": "2",
        "flags": "spacing z 5 mm, planned for 1 mm",
        **{f"spacing_{axis}_mm": value for axis, value in zip("zyx", "511", strict=True)},
        **{f"extent_{axis}_mm": value for axis, value in zip("zyx", ("50", "40", "40"), strict=True)},
        "foreground_voxels": "1234",
        "outside_T1": "0.25",
        "outside_T2": "",
        "folds_dice": "0.4",
        "mirrors_dice": "",
        "folds_dice_organ": "0.9",
        "folds_dice_lesion": "0.4",
        "mirrors_dice_organ": "",
        "mirrors_dice_lesion": "",
    }
    assert (lines[1]["folds_dice"], lines[1]["mirrors_dice"], lines[1]["mirrors_dice_organ"]) == ("", "0.75", "")


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    keep(tmp_path, "a", 0.2)
    (tmp_path / "qc" / "a.json").write_text("{")
    with pytest.raises(FedsamError, match=r"a\.json[\s\S]*predict that case again"):
        write_tables(tmp_path)
    assert not (tmp_path / "qc.json").exists()


def keep_and_write(folder: Path, case: str) -> None:
    keep(folder, case, 0.5)
    write_tables(folder)


def test_processes_that_end_together_lose_no_row(tmp_path: Path) -> None:
    processes = [get_context("fork").Process(target=keep_and_write, args=(tmp_path, f"case{number}")) for number in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert cases_of(tmp_path) == [f"case{number}" for number in range(6)]
