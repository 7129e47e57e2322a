"""What leaves the sites of a real dataset: shown, written, held back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.entrypoints.plan_and_preprocess import main
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans
from tests.pipeline.conftest import NAME

CASES = {"site_a": 5, "site_b": 2, "site_c": 2}


@pytest.fixture
def folder(root: Path) -> Path:
    """The preprocessed folder, not there yet, of the tiny demo dataset."""
    assert {site: len(cases) for site, cases in load_raw_dataset(root / "raw" / NAME).sites.items()} == CASES
    return root / "preprocessed" / NAME


@pytest.fixture
def edit(folder: Path) -> Callable[..., None]:
    """Changes keys of the raw ``dataset.json``; ``None`` deletes one."""

    def change(**keys: Any) -> None:
        path = folder.parents[1] / "raw" / NAME / "dataset.json"
        content = json.loads(path.read_text(encoding="utf-8")) | keys
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}), encoding="utf-8")

    return change


def run(*flags: str) -> int:
    return main(["-m", "tiny_random", "-np", "1", "--no_pp", *flags])


def sent(folder: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("flags", [(), ("--privacy_floor", "1"), ("--privacy_floor", "2")])
def test_a_dry_run_shows_the_bytes_that_the_real_run_writes(
    flags: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--dry_run", *flags) == 0
    printed = capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["dry_run", "integrity.json", "logs"]
    shown = sent(folder / "dry_run")
    assert run(*flags) == 0
    assert sent(folder / "fingerprints") == shown
    assert sorted(shown) == sorted(CASES)
    for site, content in shown.items():
        assert f"{site}: these {len(content)} bytes would leave, and nothing else" in printed
        assert content.decode() in printed


def test_sites_below_the_floor_are_told_and_use_the_plan_of_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", "tiny_random", "-np", "1"]) == 0
    printed = capsys.readouterr().out
    for site in ("site_b", "site_c"):
        assert f"{site} holds back the whole fingerprint: 2 cases, fewer than 5" in printed
        assert f"{site} takes part all the same" in printed
        document = json.loads((folder / "fingerprints" / f"{site}.json").read_text())
        assert document == {"schema_version": 2, "withheld": "this site has too few cases for its privacy floor of 5"}
    assert "site_a holds back" not in printed
    merged = Fingerprint.load(folder / "fingerprint.json")
    assert (merged.num_sites, merged.num_cases, merged.privacy_floor) == (1, 5, 5)
    assert all(count >= 5 for counts in merged.spacing for count in counts.values())
    assert Plans.load(folder / "plans.json").fingerprint_sha256 == merged.sha256()
    (store,) = folder.glob("store_*")
    assert len(list(store.glob("*_seg.b2nd"))) == sum(CASES.values())


def test_no_site_above_the_floor(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--privacy_floor", "6") == 2
    error = capsys.readouterr().err
    assert "every site has too few cases for its privacy floor" in error
    assert "site_a 5, site_b 2, site_c 2" in error
    assert "--privacy_floor 1" in error
    assert sorted(path.name for path in folder.iterdir()) == ["integrity.json", "logs"]
    assert run("--privacy_floor", "6", "--dry_run") == 0  # what would leave is shown all the same
    assert {json.loads(content)["schema_version"] for content in sent(folder / "dry_run").values()} == {2}


def test_one_site_needs_no_floor_unless_one_is_asked_for(
    folder: Path, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    edit(sites=None, test_sites=None)
    assert run("--dry_run") == 0
    assert "nothing would leave the building" in capsys.readouterr().out
    assert not (folder / "dry_run").exists()
    assert run() == 0
    assert "one site: nothing leaves the building, so the privacy floor does not apply" in capsys.readouterr().out
    assert Fingerprint.load(folder / "fingerprint.json").privacy_floor == 1
    assert run("--dry_run", "--privacy_floor", "5") == 0
    shown = sent(folder / "dry_run")
    assert json.loads(shown["site_0"])["privacy_floor"] == 5
    assert run("--privacy_floor", "5") == 0
    assert sent(folder / "fingerprints") == shown
    assert "one site" not in capsys.readouterr().out


def test_a_dry_run_leaves_nothing_of_the_one_before(folder: Path, edit: Callable[..., None]) -> None:
    assert run("--dry_run") == 0
    edit(sites=None, test_sites=None)
    assert run("--dry_run") == 0
    assert not list((folder / "dry_run").iterdir())


def test_cases_of_one_patient_count_once(folder: Path, edit: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    edit(patients={"demo_a00": "one", "demo_a01": "one"})
    assert run("--privacy_floor", "3") == 2
    assert run("--privacy_floor", "2") == 0
    assert "site_a holds back" not in capsys.readouterr().out
    assert run("--privacy_floor", "3", "--dry_run") == 0
    assert "site_a holds back the whole fingerprint: 5 cases, fewer than 6 (3 patients of up to 2)" in capsys.readouterr().out


@pytest.mark.parametrize("floor", ["0", "-1", "few"])
def test_floors_that_are_none(floor: str, folder: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("--privacy_floor", floor)
    assert stopped.value.code == 2
    assert not folder.exists()
