"""``fedsam_compare`` from flags to files: a complete table, resuming, failures, every refusal."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.entrypoints.compare import main
from fedsam_pipeline.entrypoints.evaluate import main as evaluate
from fedsam_pipeline.pipeline.predict import predict
from tests.pipeline.comparisons import NAME, DirectSimulation, make_planned

METHODS = ["lora centralized", "lora federated fedavg", "decoder centralized", "decoder federated fedavg"]
FLAGS = ("--recipes", "lora,decoder", "--protocols", "centralized,federated", "--steps", "1")
POOLED, FEDERATED = "centralized__fedavg__seed0", "federated__fedavg__seed0"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"fedsam_{name}", str(folder / name))
        make_planned(folder)
    return folder


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> DirectSimulation:
    made = DirectSimulation()
    monkeypatch.setattr("fedsam_pipeline.pipeline.train.simulate", made)
    return made


@pytest.fixture(scope="module")
def compared(planned: Path) -> Iterator[Path]:
    """Results of one comparison; tests work on copies."""
    with pytest.MonkeyPatch.context() as patch:
        point_to(planned, planned / "compared", patch)
        patch.setattr("fedsam_pipeline.pipeline.train.simulate", DirectSimulation())
        assert main([*FLAGS]) == 0
    yield planned / "compared"


@pytest.fixture
def results(planned: Path, compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a finished comparison."""
    shutil.copytree(compared, tmp_path / "results")
    point_to(planned, tmp_path / "results", monkeypatch)
    return tmp_path / "results" / NAME


def point_to(planned: Path, results: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("fedsam_raw", str(planned / "raw"))
    patch.setenv("fedsam_preprocessed", str(planned / "preprocessed"))
    patch.setenv("fedsam_results", str(results))


def record_of(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    return record


def fold(results: Path, recipe: str, run: str) -> Path:
    return results / f"{recipe}__plans__main" / run / "fold_0"


def test_the_table_is_complete(results: Path) -> None:
    folder = results / "comparison__plans__fold_0"
    record = record_of(folder)
    assert [method["name"] for method in record["methods"]] == METHODS
    assert (record["rounds"], record["local_steps"], record["failures"]) == (1, 1, [])
    assert record["reference"] == METHODS[0] and record["best"] in METHODS
    sites = sorted(record["cases"])
    assert sites == ["site_a", "site_b"]  # site_c has no validation case in fold 0, and the notes say so
    assert any("site_c" in note for note in record["notes"])
    for method in record["methods"]:
        for score in ("dice", "hd95"):
            assert sorted(method[score]["sites"]) == sites
            assert method[score]["worst"]["site"] in sites
        assert method["dice"]["worst"]["value"] == min(row["value"] for row in method["dice"]["sites"].values())
        assert method["dice"]["mean"]["value"] == pytest.approx(sum(row["value"] for row in method["dice"]["sites"].values()) / 2)
        assert method["seconds"] > 0
        assert (method["bytes"] is None) == (method["protocol"] == "centralized")
    assert record["methods"][0]["difference_to_reference"]["dice"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    traffic = json.loads((fold(results, "lora", FEDERATED) / "communication.json").read_text(encoding="utf-8"))["rounds"]
    sizes = [site[way]["bytes_message"] for entry in traffic for site in entry["sites"].values() for way in ("up", "down")]
    assert record["methods"][1]["bytes"]["total"] == sum(sizes)

    with open(folder / "comparison.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["name"] for row in rows] == METHODS
    assert float(rows[1]["dice_site_b"]) == record["methods"][1]["dice"]["sites"]["site_b"]["value"]
    assert rows[0]["bytes_total"] == ""
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert all(text.count(f"| {name} ") >= 3 for name in METHODS)
    assert record["rule"] in text and record["hd95_rule"] in text
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_scores_are_those_of_predict_and_evaluate(planned: Path, results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fold(results, "lora", FEDERATED)
    scored = json.loads((run / "validation" / "native.json").read_text(encoding="utf-8"))["cases"]
    images = tmp_path / "images"
    images.mkdir()
    for row in scored:
        name = f"{row['case']}_0000.nii.gz"
        shutil.copy(planned / "raw" / NAME / "imagesTr" / name, images / name)
    assert predict(images, tmp_path / "masks", model=run, device="cpu", test_time_augmentation=False) == 0
    assert evaluate([str(planned / "raw" / NAME), str(tmp_path / "masks"), "--chill"]) == 0
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text(encoding="utf-8"))
    expected = {row["case"]: [row["metrics"][value] for value in ("1", "2")] for row in summary["metric_per_case"]}
    assert sorted(expected) == sorted(row["case"] for row in scored)
    for row in scored:
        assert row["tp_fp_fn"] == [[metrics["TP"], metrics["FP"], metrics["FN"]] for metrics in expected[row["case"]]]
        assert row["hd95"] == [metrics["HD95"] for metrics in expected[row["case"]]]
        assert row["dice"] == [metrics["Dice"] for metrics in expected[row["case"]]]


def test_a_second_call_trains_and_scores_nothing(results: Path, simulation: DirectSimulation) -> None:
    before = record_of(results / "comparison__plans__fold_0")
    files = {path: path.stat().st_mtime_ns for path in results.glob("*__main/**/*") if path.is_file()}
    assert main([*FLAGS]) == 0
    assert simulation.trained == []
    assert {path: path.stat().st_mtime_ns for path in results.glob("*__main/**/*") if path.is_file()} == files
    assert record_of(results / "comparison__plans__fold_0") == before


def test_a_deleted_run_is_done_again_and_ends_the_same(results: Path, simulation: DirectSimulation, tmp_path: Path) -> None:
    before = record_of(results / "comparison__plans__fold_0")
    shutil.rmtree(fold(results, "decoder", POOLED))
    assert main([*FLAGS, "-o", str(tmp_path / "again")]) == 0
    assert simulation.trained == [POOLED]
    after = record_of(tmp_path / "again")
    assert [method["dice"] for method in after["methods"]] == [method["dice"] for method in before["methods"]]


def test_scores_of_another_model_are_not_taken(results: Path, simulation: DirectSimulation) -> None:
    path = fold(results, "lora", FEDERATED) / "validation" / "native.json"
    scored = path.read_bytes()
    path.write_text(json.dumps(json.loads(scored) | {"adapter_sha256": "0" * 64}), encoding="utf-8")
    assert main([*FLAGS]) == 0
    assert path.read_bytes() == scored


def test_a_run_that_fails_is_named_and_the_others_go_on(
    results: Path, simulation: DirectSimulation, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = results / "comparison__plans__fold_0"
    shutil.rmtree(fold(results, "lora", POOLED))
    shutil.rmtree(fold(results, "decoder", FEDERATED))
    simulation.broken = POOLED
    assert main([*FLAGS]) == 1
    record = record_of(folder)
    assert [method["name"] for method in record["methods"]] == METHODS[1:]
    assert [failure["run"] for failure in record["failures"]] == [str(fold(results, "lora", POOLED))]
    assert capsys.readouterr().out.count("is on fire") == 1
    assert simulation.trained == [FEDERATED]
    simulation.broken = None
    simulation.trained.clear()
    assert main([*FLAGS]) == 0
    assert simulation.trained == [POOLED]
    assert [method["name"] for method in record_of(folder)["methods"]] == METHODS


def test_each_site_is_scored_by_its_own_model_or_by_the_one_that_never_saw_it(results: Path, simulation: DirectSimulation) -> None:
    assert main(["--recipes", "decoder", "--protocols", "leave_one_site_out,local", "--steps", "1"]) == 0
    sites = ("site_a", "site_b", "site_c")
    assert simulation.trained == [f"{word}-{site}__fedavg__seed0" for word in ("leave_one_site_out", "local") for site in sites]
    record = record_of(results / "comparison__plans__fold_0")
    for method, word in zip(record["methods"], ("leave_one_site_out", "local"), strict=True):
        assert (method["protocol"], method["bytes"] is None) == (word, word == "local")
        for site in record["cases"]:
            path = fold(results, "decoder", f"{word}-{site}__fedavg__seed0") / "validation" / "native.json"
            (row,) = [row for row in json.loads(path.read_text(encoding="utf-8"))["cases"] if row["site"] == site]
            assert method["dice"]["sites"][site]["value"] == pytest.approx(sum(row["dice"]) / 2)
    assert sorted(record["methods"][0]["elsewhere"]) == []
    elsewhere = record["methods"][1]["elsewhere"]
    assert sorted(elsewhere) == list(sites)  # site_c has a model, though no case in this fold
    assert elsewhere["site_a"]["site_a"] == record["methods"][1]["dice"]["sites"]["site_a"]["value"]


@pytest.mark.parametrize(
    ("steps", "expected", "said"), [("5", (2, 2), "5 steps do not divide"), ("1", (1, 1), "1 steps are less"), ("4", (2, 2), None)]
)
def test_steps_become_rounds_of_the_plan(
    planned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    simulation: DirectSimulation,
    steps: str,
    expected: tuple[int, int],
    said: str | None,
) -> None:
    point_to(planned, tmp_path, monkeypatch)
    assert main(["--recipes", "decoder", "--steps", steps]) == 0
    record = record_of(tmp_path / NAME / "comparison__plans__fold_0")
    assert (record["rounds"], record["local_steps"]) == expected
    assert any(said in note for note in record["notes"]) if said else not any("steps" in note for note in record["notes"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--recipes", "no_such"), "unknown recipe"),
        (("--recipes", "lora,lora"), "--recipes is not a list of different names"),
        (("--recipes", "lora,"), "--recipes is not a list of different names"),
        (("--recipes", "lora", "--protocols", "alone"), "unknown protocol"),
        (("--recipes", "lora", "--strategies", "no_such"), "no_such"),
        (("--recipes", "lora", "-f", "all"), "fold all leaves no case that no training saw"),
        (("--recipes", "lora", "-f", "9"), "there is no such fold"),
        (("--recipes", "lora", "-d", "7"), "planned dataset 7 is missing"),
        (("--recipes", "lora", "-p", "others"), "there is no planned dataset"),
        (("--recipes", "lora", "--steps", "2"), "cannot be continued with other settings"),
    ],
)
def test_every_users_error_is_one_message_before_anything_is_trained(
    results: Path, simulation: DirectSimulation, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], message: str
) -> None:
    files = {path: path.stat().st_mtime_ns for path in results.rglob("*")}
    assert main([*flags]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("error: ") == 1
    assert simulation.trained == []
    assert {path: path.stat().st_mtime_ns for path in results.rglob("*")} == files


def test_other_steps_need_overwrite(results: Path, simulation: DirectSimulation) -> None:
    assert main(["--recipes", "lora", "--steps", "2", "--overwrite"]) == 0
    assert simulation.trained == [FEDERATED]
    assert record_of(results / "comparison__plans__fold_0")["steps_a_site"] == 2


def test_two_recipes_of_one_name_are_refused(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fedsam_pipeline.specs import recipe

    source = Path(recipe.__file__).parents[2] / "plans" / "recipes" / "lora.toml"
    (tmp_path / "mine.toml").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["--recipes", f"lora,{tmp_path / 'mine.toml'}"]) == 2
    assert "two recipes have one name" in capsys.readouterr().err


def test_without_the_raw_dataset_nothing_can_be_scored(
    results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("fedsam_raw", str(tmp_path / "nowhere"))
    assert main([*FLAGS]) == 2
    assert "the raw dataset is missing" in capsys.readouterr().err


def test_when_every_run_fails_there_is_no_table(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulation: DirectSimulation, capsys: pytest.CaptureFixture[str]
) -> None:
    point_to(planned, tmp_path, monkeypatch)
    simulation.broken = FEDERATED
    assert main(["--recipes", "lora"]) == 2
    assert "no method could be trained" in capsys.readouterr().err
    assert not list(tmp_path.rglob("comparison.json"))
