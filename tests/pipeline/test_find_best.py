"""``fedsam_find_best_configuration``: sums are those of predicting and evaluating, work is kept, its command runs, every refusal."""

import json
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict
from flwr.clientapp import ClientApp

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.dataset.volume import read_labels
from fedsam_pipeline.entrypoints.ensemble import main as ensemble
from fedsam_pipeline.entrypoints.evaluate import main as evaluate
from fedsam_pipeline.entrypoints.find_best_configuration import main
from fedsam_pipeline.entrypoints.predict import main as predict
from fedsam_pipeline.entrypoints.train_federated import main as train
from fedsam_pipeline.files import read_json
from fedsam_pipeline.flower.simulation import Grid, simulate_app
from fedsam_pipeline.pipeline import site_configurations
from fedsam_pipeline.preprocessing.preprocess import preprocess_image
from tests.flower.grids import DirectGrid
from tests.pipeline.comparisons import NAME, DirectSimulation, make_planned

RUN = "federated__fedavg__seed0"
DECODER, LORA = f"decoder__plans__main/{RUN}", f"lora__plans__main/{RUN}"
FLAGS = ["-f", "0", "1"]


def simulated(
    tasks: Sequence[Any],
    make_app: Callable[[Callable[[Context, RecordDict], Any]], ClientApp],
    server: Callable[[Grid, threading.Event], None],
    *,
    workers: int,
) -> None:
    """Takes the place of ``simulate_app``."""
    server(DirectGrid(tasks, make_app), threading.Event())


def point_to(folder: Path, patch: pytest.MonkeyPatch) -> None:
    for name in ("raw", "preprocessed", "results"):
        patch.setenv(f"fedsam_{name}", str(folder / name))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two recipes with two folds each, and one with a single fold; and the best of them, found. Tests work on copies."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        point_to(folder, patch)
        patch.setattr("fedsam_pipeline.pipeline.train.simulate", DirectSimulation())
        patch.setattr("fedsam_pipeline.pipeline.find_best.simulate_app", simulated)
        make_planned(folder)
        for recipe, fold in (("lora", "0"), ("lora", "1"), ("decoder", "0"), ("decoder", "1"), ("samed", "0")):
            assert train(["-r", recipe, "-f", fold, "--local_steps", "1", "--rounds", "1"]) == 0
        assert main(FLAGS) == 0
    yield folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path / "all")
    point_to(tmp_path / "all", monkeypatch)
    monkeypatch.setattr("fedsam_pipeline.pipeline.find_best.simulate_app", simulated)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "all"


def found(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = read_json(folder / "results" / NAME / "best_configuration" / "best_configuration.json")
    return record


def predicted(folder: Path, recipe: str, target: Path) -> None:
    """The masks of all validation cases of folds 0 and 1, each by the fold that did not see it, with their probabilities."""
    raw = load_raw_dataset(folder / "raw" / NAME)
    splits = json.loads((folder / "preprocessed" / NAME / "splits_final.json").read_text())
    for fold in (0, 1):
        images = target / f"images_{fold}"
        images.mkdir(parents=True)
        for case in splits[fold]["val"]:
            for path in raw.image_paths(case):
                shutil.copy(path, images)
        run = folder / "results" / NAME / f"{recipe}__plans__main" / RUN
        assert (
            predict(
                ["-i", str(images), "-o", str(target), "-m", str(run), "-f", str(fold), "--save_probabilities", "--disable_postprocessing"]
            )
            == 0
        )


def test_sums_are_those_of_predicting_and_evaluating(folder: Path, tmp_path: Path) -> None:
    for recipe in ("lora", "decoder"):
        predicted(folder, recipe, tmp_path / recipe)
    assert ensemble(["-i", str(tmp_path / "decoder"), str(tmp_path / "lora"), "-o", str(tmp_path / "pair")]) == 0
    record = found(folder)
    rows = {row["configuration"]: row for row in record["configurations"]}
    for name, masks in ((LORA, "lora"), (DECODER, "decoder"), (f"{DECODER} + {LORA}", "pair")):
        shutil.rmtree(tmp_path / masks / "logs", ignore_errors=True)
        assert evaluate([str(folder / "raw" / NAME), str(tmp_path / masks), "--chill"]) == 0
        summary = read_json(tmp_path / masks / "summary.json")
        assert rows[name]["dice"] == pytest.approx(summary["dice"], abs=1e-9)
        assert rows[name]["sites"] == pytest.approx({site: row["dice"] for site, row in summary["sites"].items()}, abs=1e-9)
    assert [row["dice"] for row in record["configurations"]] == sorted((row["dice"] for row in rows.values()), reverse=True)
    assert record["best"] == record["configurations"][0]["configuration"]


def test_the_record_names_no_case(folder: Path) -> None:
    written = json.dumps(found(folder))
    assert not [case for case in load_raw_dataset(folder / "raw" / NAME).cases if f'"{case}"' in written]
    assert list(found(folder)["left_out"]) == [f"samed__plans__main/{RUN}"]


def test_what_is_done_is_not_done_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {key: value for key, value in found(folder).items() if key != "commands"}
    cases: list[str] = []
    made = preprocess_image

    def noted(*arguments: Any, case: str) -> Any:
        cases.append(case)
        return made(*arguments, case=case)

    monkeypatch.setattr(site_configurations, "preprocess_image", noted)
    assert main(FLAGS) == 0
    assert not cases
    assert {key: value for key, value in found(folder).items() if key != "commands"} == before  # the copy lies elsewhere
    assert main([*FLAGS, "--disable_ensembling"]) == 0  # other configurations are another question
    assert cases and "+" not in json.dumps(found(folder)["configurations"])
    assert not list((folder / "results" / NAME / "best_configuration").rglob("*.b2nd"))


@pytest.mark.parametrize("pairs", [True, False])
def test_the_command_that_is_written_runs(folder: Path, tmp_path: Path, pairs: bool, capsys: pytest.CaptureFixture[str]) -> None:
    if not pairs:
        assert main([*FLAGS, "--disable_ensembling"]) == 0
    record = found(folder)
    commands = (folder / "results" / NAME / "best_configuration" / "predict_command.txt").read_text().splitlines()
    assert commands == record["commands"]
    if " + " not in record["best"]:
        assert len(commands) == 1 and record["best"] in commands[0]
    images = folder / "raw" / NAME / "imagesTs"
    for command in commands:
        program, *arguments = shlex.split(command.replace("IMAGES", str(images)).replace("MASKS", str(tmp_path / "masks")))
        assert {"fedsam_predict": predict, "fedsam_ensemble": ensemble}[program](arguments) == 0
    masks = sorted((tmp_path / "masks").glob("*.nii.gz"))
    assert len(masks) == len(list(images.iterdir()))
    assert all(np.isin(read_labels(path).array, (0, 1, 2)).all() for path in masks)


def test_flowers_simulation_gives_the_same(folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedsam_pipeline.pipeline.find_best.simulate_app", simulate_app)
    shutil.rmtree(folder / "results" / NAME / "best_configuration")
    assert main(FLAGS) == 0
    again, before = ({row["configuration"]: row["sites"] for row in found(place)["configurations"]} for place in (folder, trained))
    assert again.keys() == before.keys()
    for name, sites in before.items():
        assert again[name] == pytest.approx(sites, abs=1e-3)  # another number of threads may move a voxel


def refused(capsys: pytest.CaptureFixture[str], arguments: Sequence[str], *words: str) -> None:
    capsys.readouterr()
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert not [word for word in words if word not in error], error


def test_folds_that_are_not_trained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, [], "no federated run has folds 0, 1, 2, 3, 4 trained", f"{LORA}: fold_2 is not trained", "name fewer folds with -f")
    samed = folder / "results" / NAME / "samed__plans__main" / RUN
    refused(capsys, [*FLAGS, "-m", str(samed)], "fold_1 is not trained")


def test_a_run_of_other_cases_is_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "preprocessed" / NAME / "splits_final.json"
    splits = json.loads(path.read_text())
    path.write_text(json.dumps([splits[1], splits[0], *splits[2:]]))
    refused(capsys, FLAGS, "no federated run has folds 0, 1 trained", "the run cannot be continued with other settings")


def test_a_run_that_was_moved_or_forgot_its_arguments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "results" / NAME / "lora__plans__main" / RUN
    shutil.copytree(run, folder / "moved")
    refused(capsys, [*FLAGS, "-m", str(folder / "moved")], "a run is not where its arguments put it")
    path = run / "fold_0" / "run.json"
    path.write_text(json.dumps({"status": "done"}))
    refused(capsys, [*FLAGS, "-m", str(run)], "a run does not say how it was trained")


def test_too_few_cases_to_tell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, ["-f", "0", "1", "--privacy_floor", "99"], "no site has enough validation cases", "99 patients")


def test_sums_that_differ_by_few_patients_are_not_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = folder / "preprocessed" / NAME
    fingerprint = read_json(plans / "fingerprint.json")
    (plans / "fingerprint.json").write_text(json.dumps(fingerprint | {"privacy_floor": 2}))  # the sums of folds 0 and 1 are out
    refused(capsys, ["-f", "0"], "sites gave no usable answer")
    log = folder / "results" / NAME / "best_configuration" / "sites" / "site_a" / "logs" / "site.log"
    assert "differ from those of earlier sums by fewer patients" in log.read_text()


def test_a_site_that_fails_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = json.loads((folder / "preprocessed" / NAME / "splits_final.json").read_text())[0]["val"][0]
    raw = load_raw_dataset(folder / "raw" / NAME)
    raw.label_path(case).write_bytes(b"no mask")
    refused(capsys, FLAGS, "1 of 3 sites gave no usable answer", "bad_input", "repeat the command")
