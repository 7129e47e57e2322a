"""Every command as a user types it: help, bad input, interruption, and what its exit code says."""

import importlib
import json
import logging
import shutil
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fedsam_pipeline.entrypoints import download_weights, plan_and_preprocess, train_federated
from fedsam_pipeline.entrypoints.command import command_parser, run_command
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline import train as train_module
from tests.entrypoints.planned import write_planned

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
SCRIPTS: dict[str, str] = PROJECT["project"]["scripts"]
FLAGS = {
    "fedsam_plan_and_preprocess": (
        "-d",
        "-m",
        "-p",
        "-overwrite_plans_name",
        "-overwrite_target_spacing",
        "--clean",
        "-np",
        "--verify_dataset_integrity",
        "--fix",
        "-o",
        "--no_pp",
        "--privacy_floor",
        "--dry_run",
    ),
    "fedsam_plot_overlays": ("-d", "-o", "--preprocessed", "-p", "-n", "--channel"),
    "fedsam_train_federated": (
        *("-d", "-r", "-p", "-f", "-m", "--protocol", "--rounds", "--local_steps", "--lr", "--val_every", "--seed", "-device"),
        *("--workers", "-gpu_memory_target", "--random_encoder", "--c", "--overwrite"),
    ),
    "fedsam_predict": (
        *("-i", "-o", "-d", "-m", "-f", "-device", "--disable_tta", "--mirror_axes", "-step_size", "--save_probabilities"),
        *("--continue_prediction", "-num_parts", "-part_id", "--max_memory"),
    ),
    "fedsam_ensemble": ("-i", "-o", "--save_probabilities"),
    "fedsam_evaluate": ("GT", "PRED", "--dataset_json", "-o", "--chill"),
    "fedsam_export_model": ("-o", "-d", "-m", "-f", "--licence", "--overwrite"),
    "fedsam_import_model": ("ZIP", "-o"),
    "fedsam_info": ("--verify", "--json"),
    "fedsam_make_demo_dataset": ("-d", "-o", "--size", "--seed", "--overwrite"),
    "fedsam_convert_dataset": ("msd", "prostate", "kits19", "ixi", "fets"),
    "fedsam_download_weights": ("base_model", "--from"),
    "fedsam_recipes": ("-m", "--image_size", "--num_classes", "--rank", "-r", "--json", "--tensors"),
    "fedsam_report": ("-d", "-m", "-o", "--cases", "--no_cases", "-device"),
    "fedsam_compare": (
        *("-d", "--recipes", "--methods", "--protocols", "--strategies", "--wires", "--learning_rates", "--random_encoder"),
        *("--seeds", "--steps", "--local_steps", "-f", "-p", "-o", "-device"),
        *("--workers", "-gpu_memory_target", "--overwrite"),
    ),
    "fedsam_find_best_configuration": ("-d", "-p", "-f", "-m", "--disable_ensembling", "--privacy_floor", "-device", "--workers"),
    "fedsam_site_kit": ("init", "place", "key", "renew"),
    "fedsam_doctor": ("-d", "--kit", "--json"),
    "fedsam_audit": ("verify", "show"),
    "fedsam_demo_deployment": ("-o", "-m", "--local_steps", "--size", "--round_timeout", "--overwrite"),
    "fedsam_demo": ("-o", "-m", "--rounds", "--local_steps", "--size", "--overwrite", "-device"),
}
PREPROCESSED = Path("fedsam_data/preprocessed")
RUN = Path("fedsam_data/results/Dataset001_Demo/default__plans__main/federated__fedavg-int4__seed0/fold_0")

Main = Callable[[Sequence[str] | None], int]

pytestmark = pytest.mark.usefixtures("users_folder")


def main_of(script: str) -> Main:
    module, function = SCRIPTS[script].split(":")
    main: Main = getattr(importlib.import_module(module), function)
    return main


def error_of(main: Main, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must end with code 2 and exactly one error; returns its text."""
    assert main(arguments) == 2
    text = capsys.readouterr().err
    assert text.count("error: ") == 1
    assert "Traceback" not in text
    return text[text.index("error: ") :]


def test_the_list_of_commands_is_complete() -> None:
    assert SCRIPTS.keys() == FLAGS.keys()
    modules = {path.stem for path in (Path(__file__).parents[2] / "entrypoints").glob("*.py")} - {"__init__", "command"}
    assert {reference.split(":")[0].rsplit(".", 1)[1] for reference in SCRIPTS.values()} == modules


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_of(script)(["-h"])
    assert caught.value.code == 0
    words = capsys.readouterr().out.replace(",", " ").replace("[", " ").replace("]", " ").split()
    assert words[:2] == ["usage:", script]
    assert not [flag for flag in ("--verbose", *FLAGS[script]) if flag not in words]


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_refused(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main_of(script)(["--no_such_flag"])
    assert caught.value.code == 2
    assert "usage: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--rounds", "0"], ["--local_steps", "-1"], ["--lr", "0"], ["--lr", "nan"], ["--lr", "x"], ["--workers", "two"], ["-device", "tpu"]],
)
def test_numbers_that_make_no_sense_are_refused_by_their_flag(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_federated.main(arguments)
    assert caught.value.code == 2
    assert f"argument {arguments[0]}: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["eta", "eta=", "=1", "eta=x", ""])
def test_a_setting_without_its_name_or_number_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        train_federated.main(["--strategy_option", text])
    assert caught.value.code == 2
    assert f"argument --strategy_option: {text} is not NAME=NUMBER" in capsys.readouterr().err
    assert train_federated.build_parser().parse_args(["--strategy_option", "eta=1e-3"]).strategy_option == [("eta", 1e-3)]


# download_weights


def test_download_of_an_unknown_model(capsys: pytest.CaptureFixture[str]) -> None:
    text = error_of(download_weights.main, ["sam3"], capsys)
    assert "unknown base model" in text and "sam3" in text and "lite_medsam" in text and "vit_b" in text


def test_download_from_a_missing_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", "cache")
    text = error_of(download_weights.main, ["lite_medsam", "--from", "gone.pth"], capsys)
    assert "the weights file is missing" in text and "gone.pth" in text


# plan_and_preprocess


def test_planning_without_a_raw_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no raw dataset" in error_of(plan_and_preprocess.main, [], capsys)
    text = error_of(plan_and_preprocess.main, ["-d", "1"], capsys)
    assert "raw dataset 1 is missing" in text and "fedsam_make_demo_dataset" in text


def test_planning_for_an_unknown_base_model(capsys: pytest.CaptureFixture[str]) -> None:
    raw = Path("fedsam_data/raw/Dataset001_Demo")
    raw.mkdir(parents=True)
    (raw / "dataset.json").write_text("{}")
    assert "unknown base model" in error_of(plan_and_preprocess.main, ["-m", "sam3"], capsys)
    assert not PREPROCESSED.exists()


# train_federated


def test_training_without_a_planned_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    text = error_of(train_federated.main, [], capsys)
    assert "there is no planned dataset" in text and "fedsam_plan_and_preprocess" in text
    assert "planned dataset 4 is missing" in error_of(train_federated.main, ["-d", "4"], capsys)


def test_training_with_several_planned_datasets_and_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("Dataset001_Demo", "Dataset004_Hippocampus"):
        (PREPROCESSED / name).mkdir(parents=True)
        (PREPROCESSED / name / "plans.json").write_text("{}")
    text = error_of(train_federated.main, [], capsys)
    assert "several planned datasets and no -d" in text and "Dataset001_Demo, Dataset004_Hippocampus" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-r", "flap"], ("unknown recipe", "flap_sam")),
        (["-r", "mine.toml"], ("a recipe file cannot be read", "mine.toml")),
        (["-f", "7"], ("there is no such fold", "-f 7", "0 to 4, or all")),
        (["-f", "x"], ("there is no such fold", "-f x")),
        (["-m", "vit_b"], ("the plan is for another base model", "tiny_random", "fedsam_plan_and_preprocess -d 1 -m vit_b")),
        (["-p", "mine"], ("Dataset001_Demo has no plan of this name", "plans plans")),
        (["-d", "Demo"], ("planned dataset Demo is missing", "Dataset001_Demo")),
    ],
)
def test_training_flags_that_do_not_fit(arguments: list[str], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    write_planned(PREPROCESSED)
    text = error_of(train_federated.main, arguments, capsys)
    assert not [word for word in words if word not in text]
    assert not Path("fedsam_data/results").exists()


def break_plan(folder: Path) -> None:
    values = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps(values | {"slab_dept": 3, "image_size": 0}))


def break_spacing(folder: Path) -> None:
    values = json.loads((folder / "plans.json").read_text())
    (folder / "plans.json").write_text(json.dumps(values | {"target_spacing": [2.0, 1.0, 1.0]}))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_plan, ("not a valid Plans document", "slab_dept", "image_size")),
        (
            lambda folder: (folder / "fingerprint.json").unlink(),
            ("a file is missing", "fingerprint.json", "fedsam_plan_and_preprocess -d 1"),
        ),
        (break_spacing, ("not preprocessed for this plan", "5 missing, such as a_0", "fedsam_plan_and_preprocess -d 1")),
        (lambda folder: next(folder.glob("store_*/a_1.json")).unlink(), ("not preprocessed for this plan", "1 missing, such as a_1")),
        (lambda folder: shutil.rmtree(next(folder.glob("store_*"))), ("not preprocessed for this plan", "5 missing")),
        (lambda folder: (folder / "dataset.json").unlink(), ("a file is missing", "dataset.json")),
        (lambda folder: (folder / "splits_final.json").unlink(), ("a file is missing", "splits_final.json")),
        (lambda folder: (folder / "splits_final.json").write_text('[{"train": ["a_0"]}]'), ("the splits have another shape",)),
        (
            lambda folder: (folder / "splits_final.json").write_text('[{"train": ["a_0", "x"], "val": []}]'),
            ("the splits do not fit the dataset", "x is not in the dataset"),
        ),
    ],
)
def test_training_on_a_damaged_preprocessed_dataset(
    damage: Callable[[Path], object], words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(write_planned(PREPROCESSED))
    text = error_of(train_federated.main, ["-d", "1"], capsys)
    assert not [word for word in words if word not in text]
    assert not Path("fedsam_data/results").exists()


def test_training_without_weights_names_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("fedsam_cache", "empty")
    write_planned(PREPROCESSED, base_model="lite_medsam", image_size=56)
    text = error_of(train_federated.main, [], capsys)
    assert "the weights of lite_medsam are missing" in text and "fedsam_download_weights lite_medsam" in text


def test_training_into_a_folder_that_cannot_be_written_to(capsys: pytest.CaptureFixture[str]) -> None:
    write_planned(PREPROCESSED)
    Path("fedsam_data/results").write_text("a file")
    text = error_of(train_federated.main, [], capsys)
    assert "cannot write into a folder" in text and "choose another output folder" in text


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that the user stopped before its first round; afterwards a federation must not start any more."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train_module, "simulate", stop)
    write_planned(PREPROCESSED)
    assert train_federated.main(["--seed", "0"]) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")
    monkeypatch.setattr(train_module, "simulate", lambda *_, **__: pytest.fail("no federation may start"))
    return RUN


def test_an_interrupted_training_says_so_in_its_record(interrupted: Path) -> None:
    state = json.loads((interrupted / "run.json").read_text())
    assert state["status"] == "interrupted"
    assert state["arguments"]["seed"] == 0
    assert not (interrupted / "bundle.json").exists()


def test_a_run_that_exists_is_neither_continued_nor_replaced_by_itself(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (interrupted / "run.json").read_bytes()
    text = error_of(train_federated.main, [], capsys)
    assert "this run exists already" in text and "status interrupted" in text and str(interrupted) in text
    assert "--c to continue it, --overwrite to start over, or another --seed" in text
    assert (interrupted / "run.json").read_bytes() == before


def test_a_run_cannot_be_continued_with_other_settings(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (interrupted / "run.json").read_bytes()
    text = error_of(train_federated.main, ["--c", "--rounds", "9", "--local_steps", "7"], capsys)
    assert "the run cannot be continued with other settings" in text
    assert "rounds 2; local_steps" in text and "rounds 9; local_steps 7" in text
    assert (interrupted / "run.json").read_bytes() == before


def test_an_estimate_is_of_a_whole_run(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (interrupted / "run.json").read_bytes()
    text = error_of(train_federated.main, ["--dry_run", "--c"], capsys)
    assert "the estimate is of a whole run" in text and "leave --c out" in text
    assert (interrupted / "run.json").read_bytes() == before


def test_a_run_cannot_be_continued_with_another_plan(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = PREPROCESSED / "Dataset001_Demo" / "plans.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"slab_depth": 4}))
    assert "plan_sha256" in error_of(train_federated.main, ["--c"], capsys)


def test_a_broken_record_of_a_run_is_one_clear_error(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (interrupted / "run.json").write_text("{")
    assert "cannot be read as JSON" in error_of(train_federated.main, ["--c"], capsys)


def test_an_internal_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(train_module, "simulate", fail)
    write_planned(PREPROCESSED)
    assert train_federated.main([]) == 3
    text = capsys.readouterr().err
    assert "Traceback" in text and "a fault of ours" in text and text.endswith("please report the lines above\n")
    assert json.loads((RUN / "run.json").read_text())["status"] == "failed"


def test_the_first_lines_say_which_folders_and_which_dataset(interrupted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_federated.main([]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "fedsam_raw, fedsam_preprocessed, fedsam_results not set: using fedsam_data/ in the current folder"
    assert lines[1] == "dataset Dataset001_Demo"


# all commands


def body_raising(error: BaseException) -> Callable[[object], int]:
    def body(arguments: object) -> int:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            FedsamError("a file is missing", path="a.json", fix="make it"),
            2,
            "error: a file is missing\n  where:    a.json\n  fix:      make it\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (ValueError("odd"), 3, "internal error: please report the lines above\n"),
    ],
)
def test_exit_codes(error: BaseException, code: int, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(command_parser("x", "x"), body_raising(error), []) == code
    assert capsys.readouterr().err.endswith(words)


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_a_body_may_say_that_some_cases_failed(returned: int | None, code: int) -> None:
    assert run_command(command_parser("x", "x"), lambda arguments: returned, []) == code


@pytest.mark.parametrize(("arguments", "shown"), [([], False), (["--verbose"], True)])
def test_verbose_shows_debug_messages_and_where_an_error_was_raised(
    arguments: list[str], shown: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command_parser("x", "x"), body_raising(FedsamError("wrong")), arguments) == 2
    assert ("Traceback" in capsys.readouterr().err) == shown


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """``run_command`` sets up logging for a whole process; the next test must find its own."""
    root = logging.getLogger()
    before = list(root.handlers), root.level
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
