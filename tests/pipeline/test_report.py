"""``fedsam_report`` on runs that the real training wrote: what it finds, whom it shows, and every refusal."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedsam_pipeline.entrypoints.report import main
from fedsam_pipeline.entrypoints.train_federated import main as train
from fedsam_pipeline.files import read_json, write_json
from fedsam_pipeline.paths import data_folders
from fedsam_pipeline.pipeline.demo import demo_report
from fedsam_pipeline.pipeline.evaluate import evaluate
from fedsam_pipeline.pipeline.predict import predict
from fedsam_pipeline.pipeline.report import other_runs
from fedsam_pipeline.preprocessing.store import CaseStore
from fedsam_pipeline.report.run_files import RunFiles
from tests.pipeline.comparisons import NAME, DirectSimulation, make_planned

FOLDERS = ("raw", "preprocessed", "results")
RUN = Path(NAME) / "lora__plans__main" / "federated__fedavg__seed0"
FLAGS = ("-r", "lora", "--rounds", "2", "--local_steps", "1", "--val_every", "1", "-device", "cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny demo dataset, a federated run and a second one of another seed; tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name in FOLDERS:
            patch.setenv(f"fedsam_{name}", str(folder / name))
        patch.setattr("fedsam_pipeline.pipeline.train.simulate", DirectSimulation())
        make_planned(folder)
        assert train([*FLAGS]) == 0
        assert train([*FLAGS, "--seed", "1"]) == 0
    yield folder


@pytest.fixture
def results(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the results; the environment names it."""
    shutil.copytree(trained / "results", tmp_path / "results")
    for name in ("raw", "preprocessed"):
        monkeypatch.setenv(f"fedsam_{name}", str(trained / name))
    monkeypatch.setenv("fedsam_results", str(tmp_path / "results"))
    return tmp_path / "results"


def preprocessed() -> Path:
    return data_folders().preprocessed / NAME


def cases_of(fold: Path) -> list[str]:
    return [row["case"] for path in fold.glob("sites/*/validation.json") for row in read_json(path)["cases"]]


def test_a_run_becomes_a_page(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fold = results / RUN / "fold_0"
    assert main(["-m", str(results / RUN), "--cases", "1"]) == 0
    page = (fold / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"{fold / 'report.html'} ({len(page.encode()):,} bytes)\n"
    assert page.count("src='data:image/png;base64,") == min(2, (len(cases_of(fold)) + 1) // 2)  # of two cases the lower is worst and median
    dice = read_json(fold / "validation" / "summary.json")["dice"]
    assert f"<b>{dice:.4f}</b>" in page
    fingerprint = read_json(preprocessed() / "fingerprint.json")
    assert f"<td role='cell' data-label='value'>{fingerprint['num_cases']} cases of {fingerprint['num_sites']} site(s)</td>" in page
    assert "2. lora__plans__main/federated__fedavg__seed1" in page and page.count("(this run)") == 2
    assert any(case in page for case in cases_of(fold))


def test_the_same_run_makes_the_same_page(results: Path, tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        assert main(["-m", str(results / RUN), "-o", str(tmp_path / name), "--cases", "1", "-device", "cpu"]) == 0
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_the_only_run_of_the_dataset_needs_no_flag(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(results / RUN.with_name("federated__fedavg__seed1"))
    assert main(["--no_cases"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"reporting on {NAME}: {RUN.relative_to(NAME)}\n")
    assert "No other finished run of this plan" in (results / RUN / "fold_0" / "report.html").read_text(encoding="utf-8")


def test_without_cases_nothing_of_a_single_case_is_in_the_page(results: Path, tmp_path: Path) -> None:
    assert main(["-m", str(results / RUN), "-o", str(tmp_path / "page.html"), "--no_cases"]) == 0
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert not [case for case in cases_of(results / RUN / "fold_0") if case in page]
    assert "image/png" not in page and "Box plot" not in page and page.count("left out of this page (--no_cases)") == 2


def test_a_central_folder_has_no_case(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As at the server of a real federation: no state of any site, no store."""
    fold = results / RUN / "fold_0"
    shutil.rmtree(fold / "sites")
    monkeypatch.setenv("fedsam_preprocessed", str(tmp_path / "nowhere"))
    assert main(["-m", str(fold)]) == 0
    page = (fold / "report.html").read_text(encoding="utf-8")
    assert "they stay at their sites" in page and "No case is shown" in page and "image/png" not in page
    assert "The fingerprint that the plan was made of is not on this machine" in page
    assert f"{read_json(fold / 'validation' / 'summary.json')['dice']:.4f}" in page


def test_cases_without_their_image_are_named_not_shown(results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("fedsam_preprocessed", str(tmp_path / "nowhere"))
    assert main(["-m", str(results / RUN)]) == 0
    page = (results / RUN / "fold_0" / "report.html").read_text(encoding="utf-8")
    assert "its preprocessed image is not on this machine" in page and "image/png" not in page and "Box plot" in page


def test_a_case_with_another_mask_is_not_shown(results: Path) -> None:
    fold = results / RUN / "fold_0"
    for path in fold.glob("sites/*/validation.json"):
        document = read_json(path)
        for row in document["cases"]:
            row["tp_fp_fn"][0][2] += 1
        write_json(path, document)
    assert main(["-m", str(fold)]) == 0
    page = (fold / "report.html").read_text(encoding="utf-8")
    assert "its reference mask is another one than was scored" in page and "image/png" not in page


def test_a_run_in_training_has_a_page(results: Path) -> None:
    fold = results / RUN / "fold_0"
    (fold / "bundle.json").unlink()
    write_json(fold / "run.json", read_json(fold / "run.json") | {"status": "running"})
    assert main(["-m", str(fold)]) == 0
    page = (fold / "report.html").read_text(encoding="utf-8")
    assert "This training is not done (status: running)" in page and "No case is shown: the training is not done" in page


def test_another_fingerprint_is_not_told(results: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(trained / "preprocessed", tmp_path / "preprocessed")
    path = tmp_path / "preprocessed" / NAME / "fingerprint.json"
    write_json(path, read_json(path) | {"privacy_floor": 3})
    monkeypatch.setenv("fedsam_preprocessed", str(tmp_path / "preprocessed"))
    assert main(["-m", str(results / RUN), "--no_cases"]) == 0
    assert "is not the one that the plan was made of" in (results / RUN / "fold_0" / "report.html").read_text(encoding="utf-8")


def test_runs_that_cannot_be_compared_or_read_are_left_out(results: Path) -> None:
    fold, other = results / RUN / "fold_0", results / RUN.with_name("federated__fedavg__seed1") / "fold_0"
    run = read_json(other / "run.json")
    assert [each.name for each in other_runs(RunFiles.load(fold))[0]] == ["lora__plans__main/federated__fedavg__seed1"]
    write_json(other / "run.json", run | {"cases_sha256": "0"})
    assert other_runs(RunFiles.load(fold)) == ([], [])
    write_json(other / "run.json", run)
    (other / "communication.json").write_text("{", encoding="utf-8")
    found, broken = other_runs(RunFiles.load(fold))
    assert found == [] and broken == ["lora__plans__main/federated__fedavg__seed1: a file cannot be read as JSON"]
    (other / "communication.json").write_text(json.dumps({"rounds": [{"sites": {"site_a": {}}}]}), encoding="utf-8")
    found, broken = other_runs(RunFiles.load(fold))
    assert found == [] and broken == ["lora__plans__main/federated__fedavg__seed1: KeyError: 'up'"]
    assert main(["-m", str(fold), "--no_cases"]) == 0
    assert "Left out: lora__plans__main" in (fold / "report.html").read_text(encoding="utf-8")


def test_pictures_show_the_stored_case(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def note(image: object, reference: object, prediction: object, **_: object) -> bytes:
        drawn.append((np.asarray(image), np.asarray(reference), np.asarray(prediction)))
        return b"\x89PNG"

    monkeypatch.setattr("fedsam_pipeline.pipeline.report_cases.overlay_png", note)
    fold = results / RUN / "fold_0"
    assert main(["-m", str(fold), "--cases", "9", "-device", "cpu"]) == 0
    (store,) = preprocessed().glob("store_*")
    rows = {row["case"]: row["tp_fp_fn"] for path in fold.glob("sites/*/validation.json") for row in read_json(path)["cases"]}
    found = []
    for image, reference, prediction in drawn:
        (case,) = [name for name in rows if np.array_equal(np.asarray(CaseStore(store).open(name).image[0]), image)]
        for value, (tp, fp, fn) in enumerate(rows[case], start=1):
            hits, strays = (int(np.sum((prediction == value) & where)) for where in (reference == value, reference != value))
            assert np.sum(reference == value) == tp + fn
            assert (hits, strays) == pytest.approx((tp, fp), abs=0.01 * image.size)  # merged LoRA rounds in another way than training
        found.append(case)
    assert sorted(found) == sorted(rows)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-m", "nowhere"], ["this folder holds no training", "no such folder", "check -m"]),
        (["-m", "empty"], ["this folder holds no training"]),
        (["-d", "9"], ["trained dataset 9 is missing"]),
        ([], ["2 trained models and no -m says which"]),
        (["--cases", "1", "--no_cases"], ["these flags would be ignored", "--cases"]),
    ],
)
def test_refusals(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], words: list[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(flags) == 2
    text = capsys.readouterr().err
    assert all(each in text for each in words), text


def test_several_folds_are_several_pages(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(results / RUN / "fold_0", results / RUN / "fold_1")
    assert main(["-m", str(results / RUN)]) == 2
    assert "a report is about one fold" in capsys.readouterr().err
    assert not (results / RUN / "fold_0" / "report.html").exists()


def test_a_page_that_cannot_be_written_leaves_nothing(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert main(["-m", str(results / RUN), "--no_cases", "-o", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot write" in capsys.readouterr().err


def test_the_demo_shows_its_test_images_on_such_a_page(results: Path, trained: Path, tmp_path: Path) -> None:
    raw, masks = trained / "raw" / NAME, tmp_path / "masks"
    assert predict(raw / "imagesTs", masks, model=results / RUN, device="cpu", test_time_augmentation=False) == 0
    summary, _ = evaluate(raw, masks)
    path = demo_report(raw, masks, results / RUN / "fold_0", summary, trained / "preprocessed", tmp_path)
    page = path.read_text(encoding="utf-8")
    for title in ("Dice on test images", "Dice on validation cases", "Worst and median cases", "Plan, with its reasons"):
        assert f"<h2>{title}</h2>" in page
    assert f"<b>{summary['dice']:.4f}</b>" in page and "All metrics, mean of the sites" in page
    drawn = [row["case"] for row in summary["metric_per_case"] if f"<figcaption>{row['case']}, " in page]
    assert len(drawn) == page.count("src='data:image/png;base64,") > 1
