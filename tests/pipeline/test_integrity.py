"""--verify_dataset_integrity, --fix and site.toml through the command, on tiny files."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.findings import ALL_CHECKS, CHEAP_CHECKS
from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.volume import Geometry, read_image, read_labels, write_image, write_labels
from fedsam_pipeline.entrypoints.plan_and_preprocess import main
from fedsam_pipeline.preprocessing.store import CaseStore
from tests.pipeline.conftest import NAME


def run(*flags: str) -> int:
    return main(["-m", "tiny_random", "-np", "1", *(() if "--fix" in flags or "-o" in flags else ("--no_pp",)), *flags])


def report(root: Path, name: str = NAME) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "preprocessed" / name / "integrity.json").read_text())
    return content


def shift(path: Path, mm: float) -> None:
    volume = read_labels(path)
    x, y, z = volume.geometry.origin
    write_labels(path, volume.array, Geometry.from_dict(volume.geometry.to_dict() | {"origin": (x + mm, y, z)}))


def test_cheap_and_all_checks(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(root / "raw" / NAME)
    assert run() == 0
    assert report(root)["checks"] == list(CHEAP_CHECKS)
    empty = read_labels(dataset.label_path(dataset.cases[0]))
    write_labels(dataset.label_path(dataset.cases[0]), np.zeros_like(empty.array), empty.geometry)
    shutil.copyfile(dataset.image_paths(dataset.cases[1])[0], dataset.test_image_paths(dataset.test_cases[0])[0])
    assert run() == 0
    shutil.rmtree(dataset.folder / "labelsTs")
    assert report(root)["findings"] == []
    capsys.readouterr()
    assert run("--verify_dataset_integrity") == 0
    printed = capsys.readouterr().out
    written = report(root)
    assert (written["checks"], written["num_errors"], written["num_test_cases"]) == (list(ALL_CHECKS), 0, len(dataset.test_cases))
    assert {finding["check"] for finding in written["findings"]} == {"masks not empty", "no image twice"}
    assert f"{written['num_warnings']} warnings" in printed
    assert all(finding["what"] in printed and finding["fix"] in printed for finding in written["findings"])


def test_all_errors_of_all_cases_are_in_the_report(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(root / "raw" / NAME)
    for case in dataset.cases[:3]:
        shift(dataset.label_path(case), 9.0)
    test = dataset.test_image_paths(dataset.test_cases[0])[0]
    geometry = read_image([test]).geometry
    write_image(test, np.full(geometry.size, 3.0, np.float32), geometry)
    assert run("--verify_dataset_integrity") == 2
    error = capsys.readouterr().err
    assert error.count("error: ") == 1 and f"{NAME} has " in error and "9 mm apart" in error
    findings = report(root)["findings"]
    assert [finding["case"] for finding in findings if finding["check"] == "mask on the image's grid"] == list(dataset.cases[:3])
    assert any(finding["check"] == "images not constant" and finding["case"] == dataset.test_cases[0] for finding in findings)
    assert sorted(path.name for path in (root / "preprocessed" / NAME).iterdir()) == ["integrity.json", "logs"]
    log = "".join(path.read_text() for path in (root / "preprocessed" / NAME / "logs").iterdir())
    assert all(finding["found"] in log for finding in findings)


@pytest.mark.parametrize("flags", [(), ("--verify_dataset_integrity",)])
def test_errors_say_how_many_of_them_fix_mends(flags: tuple[str, ...], root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(root / "raw" / NAME)
    slightly, far, *more = dataset.cases
    command = "fedsam_plan_and_preprocess -d 1 --fix mends"
    shift(dataset.label_path(slightly), 0.02)
    assert run(*flags) == 2
    shown = capsys.readouterr().err
    assert f"{command} this in a copy of the dataset" in shown and shown.count("--fix") == 1
    shift(dataset.label_path(far), 5.0)
    assert run(*flags) == 2
    shown = capsys.readouterr().err
    assert f"{command} 1 of these 2 faults in a copy" in shown and "integrity.json" not in shown
    for case in more[:4]:
        shift(dataset.label_path(case), 5.0)
    assert run(*flags) == 2
    assert f"... all of them: {root / 'preprocessed' / NAME / 'integrity.json'}" in capsys.readouterr().err
    shift(dataset.label_path(slightly), -0.02)
    assert run(*flags) == 2
    assert "--fix" not in capsys.readouterr().err


def test_fix_writes_a_copy_that_plans(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(root / "raw" / NAME)
    shift(dataset.label_path(dataset.cases[0]), 0.05)
    assert run("-d", "1", "--verify_dataset_integrity") == 2
    capsys.readouterr()
    assert run("-d", "1", "--fix") == 0
    printed = capsys.readouterr().out
    copied = "Dataset002_Demo_fixed"
    assert f"{dataset.cases[0]}: labelsTr/" in printed and printed.rstrip().endswith("next: fedsam_plan_and_preprocess -d 2")
    assert report(root, copied)["findings"] == []
    assert report(root)["num_errors"] == 1
    assert not (root / "preprocessed" / copied / "plans.json").exists()
    assert run("-d", "2", "--verify_dataset_integrity") == 0
    assert run("-d", "1", "--fix", "-o", "2") == 2
    assert "-o" in capsys.readouterr().err


def test_fix_names_what_is_left(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(root / "raw" / NAME)
    shift(dataset.label_path(dataset.cases[0]), 0.05)
    shift(dataset.label_path(dataset.cases[1]), 9.0)
    assert run("--fix", "-o", "44") == 1
    printed = capsys.readouterr().out
    assert "left for a person: 1 errors" in printed and dataset.cases[1] in printed
    assert [finding["case"] for finding in report(root, "Dataset044_Demo_fixed")["findings"]] == [dataset.cases[1]]


def test_flags_that_fix_would_ignore_are_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spacing = ("-overwrite_target_spacing", "1", "1", "1")
    assert run("--fix", "--dry_run", "--clean", "--no_pp", "-p", "mine", *spacing, "--privacy_floor", "2") == 2
    shown = capsys.readouterr().err
    assert "leave -p, -overwrite_target_spacing, --no_pp, --clean, --privacy_floor, --dry_run out" in shown
    assert run("-d", "1", "-o", "5") == 2
    assert "leave -o out" in capsys.readouterr().err
    assert not (root / "preprocessed").exists()


def test_nothing_to_fix_writes_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_raw_dataset(root / "raw" / NAME)
    assert run("--fix") == 0
    assert "nothing to fix" in capsys.readouterr().out
    shift(dataset.label_path(dataset.cases[0]), 9.0)
    assert run("--fix") == 2
    assert "9 mm apart" in capsys.readouterr().err
    assert [path.name for path in (root / "raw").iterdir()] == [NAME]


def test_a_site_with_its_own_label_values(root: Path) -> None:
    """Masks numbered otherwise, with ``site.toml``, give the same store as the federation's numbering."""
    flags = ["-m", "tiny_random", "-np", "1", "-d", "1", "--privacy_floor", "1"]
    assert main(flags) == 0
    folder = root / "preprocessed" / NAME
    store = next(folder.glob("store_*"))
    dataset = load_raw_dataset(root / "raw" / NAME)
    before = {case: CaseStore(store).open(case).labels[:] for case in dataset.cases}
    fingerprint = (folder / "fingerprint.json").read_text()
    for path in (*map(dataset.label_path, dataset.cases), *(dataset.folder / "labelsTs").iterdir()):
        volume = read_labels(path)
        write_labels(path, np.array([0, 20, 10])[volume.array], volume.geometry)
    assert main(flags) == 2
    (dataset.folder / "site.toml").write_text('[labels]\n20 = "organ"\n10 = "nodule"\n')
    assert main([*flags, "--verify_dataset_integrity"]) == 0
    assert report(root)["findings"] == []
    assert (folder / "fingerprint.json").read_text() == fingerprint
    for case, labels in before.items():
        assert np.array_equal(CaseStore(store).open(case).labels[:], labels)
