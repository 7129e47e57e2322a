"""fedsam_plan_and_preprocess on real files: everything it writes, what a rerun keeps, every error."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.dataset.raw import RawDataset, load_raw_dataset
from fedsam_pipeline.dataset.volume import read_image, read_labels, write_image, write_labels
from fedsam_pipeline.entrypoints.plan_and_preprocess import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline import plan_and_preprocess as module
from fedsam_pipeline.pipeline.plan_and_preprocess import PlanRequest, plan_and_preprocess
from fedsam_pipeline.preprocessing.store import CaseStore, store_folder
from fedsam_pipeline.preprocessing.store_case import store_case
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans
from tests.pipeline.conftest import NAME


@pytest.fixture
def dataset(root: Path) -> RawDataset:
    return load_raw_dataset(root / "raw" / NAME)


def run(*flags: str) -> int:
    """Without a privacy floor, so that all sites count."""
    return main(["-m", "tiny_random", "-np", "1", "--privacy_floor", "1", *flags])


def test_everything_is_written(root: Path, dataset: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-d", "1", "--verify_dataset_integrity") == 0
    printed = capsys.readouterr().out
    folder = root / "preprocessed" / NAME
    plans = Plans.load(folder / "plans.json")
    store = CaseStore(store_folder(folder, plans))
    assert store.cases() == dataset.cases
    assert {path.stem for path in (folder / "fingerprints").iterdir()} == set(dataset.sites)
    merged = Fingerprint.load(folder / "fingerprint.json")
    assert (merged.num_sites, merged.num_cases) == (len(dataset.sites), len(dataset.cases))
    assert merged.sha256() == plans.fingerprint_sha256
    copied = json.loads((folder / "dataset.json").read_text())
    assert copied["labels"] == dataset.labels
    assert list(copied["channel_names"].values()) == list(dataset.channel_names)
    assert {site: tuple(cases) for site, cases in copied["sites"].items()} == dataset.sites
    assert len(json.loads((folder / "splits_final.json").read_text())) == 5
    integrity = json.loads((folder / "integrity.json").read_text())
    assert (integrity["num_cases"], integrity["findings"]) == (len(dataset.cases), [])
    assert list((folder / "logs").glob("fedsam_plan_and_preprocess_*.log"))
    assert printed.startswith(f"dataset {NAME}\n")
    assert all(name in printed for name in plans.why)
    assert printed.rstrip().endswith("next: fedsam_train_federated -d 1")
    assert not list(folder.rglob(".tmp-*"))


def test_the_store_holds_the_cases_at_target_spacing(root: Path, dataset: RawDataset) -> None:
    assert run() == 0
    folder = root / "preprocessed" / NAME
    plans = Plans.load(folder / "plans.json")
    store = CaseStore(store_folder(folder, plans))
    for name in dataset.cases:
        case = store.open(name)
        assert case.image.shape == (len(dataset.channel_names), *case.properties.stored_size)
        assert case.labels.shape == case.properties.stored_size
        assert case.properties.site == dataset.site_of(name)
        assert sorted(case.foreground) == [value for value in np.unique(case.labels[:]) if value]
        raw = read_labels(dataset.label_path(name))
        before = np.count_nonzero(raw.array) * np.prod(raw.geometry.spacing)
        after = np.count_nonzero(case.labels[:]) * np.prod(plans.target_spacing)
        assert after == pytest.approx(before, rel=0.25)  # along the coarse axis one slice of seven may be taken twice


def test_a_rerun_keeps_what_is_done_and_redoes_the_rest(root: Path, dataset: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    folder = root / "preprocessed" / NAME
    splits = (folder / "splits_final.json").read_text()
    store = store_folder(folder, Plans.load(folder / "plans.json"))
    interrupted, touched, *rest = dataset.cases
    kept = {name: (store / f"{name}.b2nd").stat().st_mtime_ns for name in rest}
    (store / f"{interrupted}.json").unlink()
    image = read_image(dataset.image_paths(touched))
    write_image(dataset.image_paths(touched)[0], image.array[0], image.geometry)
    (folder / "fingerprints" / "site_gone.json").write_text("{}")
    capsys.readouterr()
    assert run() == 0
    assert f"2 cases preprocessed, {len(rest)} kept from before" in capsys.readouterr().out
    assert {name: (store / f"{name}.b2nd").stat().st_mtime_ns for name in rest} == kept
    assert (folder / "splits_final.json").read_text() == splits
    assert not (folder / "fingerprints" / "site_gone.json").exists()


def test_processes_give_the_same_bytes(root: Path) -> None:
    assert run() == 0
    first = {path.name: path.read_bytes() for path in (root / "preprocessed" / NAME).rglob("*") if path.suffix in (".json", ".b2nd")}
    shutil.rmtree(root / "preprocessed")
    assert run("-np", "2") == 0
    second = {path.name: path.read_bytes() for path in (root / "preprocessed" / NAME).rglob("*") if path.suffix in (".json", ".b2nd")}
    assert first == second


def test_plan_only_under_another_name(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--no_pp", "-p", "mine") == 0
    folder = root / "preprocessed" / NAME
    assert Plans.load(folder / "mine.json").plans_name == "mine"
    assert not (folder / "plans.json").exists()
    assert not list(folder.glob("store_*"))
    assert "without --no_pp" in capsys.readouterr().out
    assert run("-p", "mine") == 0
    assert capsys.readouterr().out.rstrip().endswith("-d 1 -p mine")


def test_given_splits_are_honoured(root: Path, dataset: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    path = root / "preprocessed" / NAME / "splits_final.json"
    path.parent.mkdir(parents=True)
    given = [{"train": list(dataset.cases[1:]), "val": [dataset.cases[0]]}]
    path.write_text(json.dumps(given))
    assert run("--no_pp") == 0
    assert json.loads(path.read_text()) == given
    path.write_text(json.dumps([{"train": ["nobody"], "val": []}]))
    assert run("--no_pp") == 2
    assert "the splits do not fit the dataset" in capsys.readouterr().err


def test_bad_cases_stop_before_anything_is_planned(root: Path, dataset: RawDataset, capsys: pytest.CaptureFixture[str]) -> None:
    bad = dataset.cases[0]
    labels = read_labels(dataset.label_path(bad))
    write_labels(dataset.label_path(bad), labels.array + 40, labels.geometry)
    assert run() == 2
    shown = capsys.readouterr().err
    assert bad in shown
    assert "dataset.json does not name" in shown
    folder = root / "preprocessed" / NAME
    findings = json.loads((folder / "integrity.json").read_text())["findings"]
    assert [finding["case"] for finding in findings] == [bad]
    assert findings[0]["fix"]
    assert sorted(path.name for path in folder.iterdir()) == ["integrity.json", "logs"]


def test_a_case_that_fails_by_our_fault_is_named_and_harms_no_other(
    root: Path, dataset: RawDataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def sometimes(raw: RawDataset, case: str, plans: Plans, folder: Path) -> bool:
        if case == dataset.cases[1]:
            raise ZeroDivisionError("oops")
        return store_case(raw, case, plans, folder)

    monkeypatch.setattr(module, "store_case", sometimes)
    assert run() == 1
    assert f'1 cases FAILED: "{dataset.cases[1]}"' in capsys.readouterr().out
    folder = root / "preprocessed" / NAME
    assert len(CaseStore(next(folder.glob("store_*"))).cases()) == len(dataset.cases) - 1
    log_text = next((folder / "logs").glob("*.log")).read_text()
    assert dataset.cases[1] in log_text
    assert "Traceback" in log_text


def test_measuring_that_fails_by_our_fault_is_an_internal_error(root: Path, dataset: RawDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(raw: RawDataset, case: str) -> Fingerprint:
        raise ZeroDivisionError(f"{raw.name} {case}")

    monkeypatch.setattr(module, "fingerprint_case", broken)
    assert run() == 3
    findings = json.loads((root / "preprocessed" / NAME / "integrity.json").read_text())["findings"]
    assert len(findings) == len(dataset.cases)
    assert "internal error" in findings[0]["what"]


@pytest.mark.parametrize("name", ["dataset", "fingerprint", "../up", ""])
def test_names_that_a_plan_cannot_have(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-p", name) == 2
    assert "cannot be the name of a plan" in capsys.readouterr().err
    assert not (root / "preprocessed").exists()


def test_a_missing_dataset_and_an_unknown_model(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-d", "7") == 2
    assert "raw dataset 7 is missing" in capsys.readouterr().err
    assert main(["-m", "nobody"]) == 2
    assert "unknown base model" in capsys.readouterr().err
    assert not (root / "preprocessed").exists()


def test_an_output_folder_that_is_a_file(root: Path, dataset: RawDataset) -> None:
    (root / "preprocessed").write_text("")
    with pytest.raises(FedsamError, match="cannot write a log file"):
        plan_and_preprocess(dataset.folder, root / "preprocessed", PlanRequest("tiny_random"))


def test_several_datasets_and_no_choice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "raw" / NAME, root / "raw" / "Dataset002_Other")
    assert run() == 2
    assert "several raw datasets" in capsys.readouterr().err
