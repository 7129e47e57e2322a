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
from fedsam_pipeline.pipeline.train import train_all
from fedsam_pipeline.specs import recipe
from tests.pipeline.comparisons import NAME, DirectSimulation

METHODS = ["lora centralized", "lora federated", "decoder centralized", "decoder federated"]
FLAGS = ("--recipes", "lora,decoder", "--protocols", "centralized,federated", "--steps", "1")
RECIPES = Path(recipe.__file__).parents[2] / "plans" / "recipes"
POOLED, FEDERATED = "centralized__fedavg__seed0", "federated__fedavg__seed0"


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
    assert predict(images, tmp_path / "masks", model=run, device="cpu", test_time_augmentation=False, postprocessing=False) == 0
    assert evaluate([str(planned / "raw" / NAME), str(tmp_path / "masks"), "--chill"]) == 0
    summary = json.loads((tmp_path / "masks" / "summary.json").read_text(encoding="utf-8"))
    expected = {row["case"]: [row["metrics"][value] for value in ("1", "2")] for row in summary["metric_per_case"]}
    assert sorted(expected) == sorted(row["case"] for row in scored)
    for row in scored:
        assert row["tp_fp_fn"] == [[metrics["TP"], metrics["FP"], metrics["FN"]] for metrics in expected[row["case"]]]
        assert row["hd95"] == [metrics["HD95"] for metrics in expected[row["case"]]]
        assert row["dice"] == [metrics["Dice"] for metrics in expected[row["case"]]]


def test_several_folds_are_one_table_on_the_cases_of_all(results: Path, simulation: DirectSimulation) -> None:
    flags = ("--recipes", "lora", "--protocols", "local,federated", "--steps", "1")
    assert main([*flags, "-f", "0", "1"]) == 0
    pooled = record_of(results / "comparison__plans__folds_0_1")
    assert pooled["fold"] == "0 1" and any("several folds" in note for note in pooled["notes"])
    by_fold = []
    for number in ("0", "1"):
        assert main([*flags, "-f", number]) == 0
        by_fold.append(record_of(results / f"comparison__plans__fold_{number}"))
    assert pooled["cases"] == {
        site: sum(record["cases"].get(site, 0) for record in by_fold) for site in sorted({*by_fold[0]["cases"], *by_fold[1]["cases"]})
    }
    assert [method["name"] for method in pooled["methods"]] == ["lora local", "lora federated"]
    for row, method in enumerate(pooled["methods"]):
        for score in ("dice", "hd95"):
            for site, count in pooled["cases"].items():
                parts = [(record["methods"][row][score]["sites"].get(site), record["cases"].get(site, 0)) for record in by_fold]
                values = [part["value"] * number for part, number in parts if part is not None and part["value"] is not None]
                if score == "dice":
                    assert method[score]["sites"][site]["value"] == pytest.approx(sum(values) / count)
        assert method["seconds"] == pytest.approx(sum(record["methods"][row]["seconds"] for record in by_fold) / 2)
    sent = [record["methods"][1]["bytes"]["total"] for record in by_fold]
    assert pooled["methods"][1]["bytes"]["total"] == sum(sent) / 2 and pooled["methods"][0]["bytes"] is None
    assert sorted(pooled["methods"][1]["difference_to_local"]["dice"]) == sorted(pooled["cases"])
    alone = pooled["methods"][0]
    assert all(alone["elsewhere"][site][site] == pytest.approx(alone["dice"]["sites"][site]["value"]) for site in pooled["cases"])


def test_a_method_that_fails_in_one_fold_is_in_no_table(
    results: Path, simulation: DirectSimulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def burning(setups: Any, request: Any) -> Any:
        if request.fold == "1" and request.protocol == "federated":
            raise RuntimeError("the machine is on fire")
        return train_all(setups, request)

    monkeypatch.setattr("fedsam_pipeline.pipeline.compare.train_all", burning)
    assert main(["--recipes", "lora", "--protocols", "centralized,federated", "--steps", "1", "-f", "0", "1"]) == 1
    record = record_of(results / "comparison__plans__folds_0_1")
    assert [method["name"] for method in record["methods"]] == ["lora centralized"]
    assert [Path(failure["run"]).name for failure in record["failures"]] == ["fold_1"]


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
        (("--recipes", "lora,lora"), "recipes is not a list of different names"),
        (("--recipes", "lora,"), "recipes is not a list of different names"),
        (("--recipes", "lora", "--protocols", "alone"), "protocols.0: "),
        (("--recipes", "lora", "--wires", "int3"), "wires.0: "),
        (("--recipes", "lora", "--wires", "int8,int8"), "wires is not a list of different names"),
        (("--recipes", "lora", "--learning_rates", "fast"), "learning_rates.0: "),
        (("--recipes", "lora", "--learning_rates", "-1"), "learning_rates.0: "),
        (("--recipes", "lora", "--strategies", "fedavg+rolora", "--wires", "int8"), "rolora cannot travel over a lossy wire"),
        (("--recipes", "lora", "--strategies", "no_such"), "no_such"),
        (("--recipes", "lora", "-f", "all"), "fold all leaves no case that no training saw"),
        (("--recipes", "lora", "-f", "0", "all"), "fold all leaves no case that no training saw"),
        (("--recipes", "lora", "-f", "9"), "there is no such fold"),
        (("--recipes", "lora", "-f", "0", "0"), "-f is not a list of different names"),
        (("--recipes", "lora", "--steps", "1", "-f", "0-inner", "1", "2", "3", "4"), "two folds validate the same cases"),
        (("--recipes", "lora", "-d", "7"), "planned dataset 7 is missing"),
        (("--recipes", "lora", "-p", "others"), "has no plan of this name"),
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


METHODS_FILE = """
[[methods]]
recipes = ["lora", "mine.toml"]
strategies = ["fedavg", "fedavg+flexlora"]

[[methods]]
recipes = ["lora"]
protocols = ["local", "federated"]
wires = ["int8"]
learning_rates = [0.01]
random_encoder = true
"""


def test_a_methods_file_lists_several_grids_and_rows_say_what_they_are(
    planned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, simulation: DirectSimulation
) -> None:
    point_to(planned, tmp_path / "results", monkeypatch)
    source = (RECIPES / "lora.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(source.replace('name = "lora"', 'name = "mine"'), encoding="utf-8")
    (tmp_path / "grid.toml").write_text(METHODS_FILE, encoding="utf-8")
    assert main(["--methods", str(tmp_path / "grid.toml"), "--steps", "1"]) == 0
    rows = record_of(tmp_path / "results" / NAME / "comparison__plans__fold_0")["methods"]
    rate = json.loads((planned / "preprocessed" / NAME / "plans.json").read_text(encoding="utf-8"))["training"]["learning_rate"]
    keys = ("name", "strategy", "wire", "learning_rate", "random_encoder")
    assert [tuple(row[key] for key in keys) for row in rows] == [
        ("lora federated fedavg", "fedavg", "fp32", rate, False),
        ("lora federated fedavg+flexlora", "fedavg+flexlora", "fp32", rate, False),
        ("mine federated fedavg", "fedavg", "fp32", rate, False),
        ("mine federated fedavg+flexlora", "fedavg+flexlora", "fp32", rate, False),
        ("lora local lr0.01 random_encoder", None, None, 0.01, True),
        ("lora federated int8 lr0.01 random_encoder", "fedavg", "int8", 0.01, True),
    ]
    assert FEDERATED in simulation.trained and "federated__fedavg-flexlora__seed0" in simulation.trained
    assert "federated__fedavg-int8-lr0.01__seed0" in simulation.trained
    assert rows[5]["bytes"]["reference_over_this"] == pytest.approx(rows[0]["bytes"]["per_round"] / rows[5]["bytes"]["per_round"])
    assert rows[5]["bytes"]["reference_over_this"] > 1.5
    assert rows[5]["difference_to_local"]["name"] == "lora local lr0.01 random_encoder"
    assert [row["difference_to_local"] for row in rows[:5]] == [None] * 5


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        (METHODS_FILE, ("--wires", "int8"), "the methods are given twice"),
        ("methods = [", (), "a methods file is not TOML"),
        ("[[methods]]\nrecipe = ['lora']\nwires = ['fp64']", (), "methods.0.wires.0"),
        ("[[methods]]\nrecipe = ['lora']", (), "did you mean recipes"),
        ("[[methods]]\nrecipes = ['lora']\n[[methods]]\nrecipes = ['lora']", (), "a method stands twice in the comparison"),
        ("[[methods]]\nrecipes = ['lora']\n[[methods]]\nrecipes = ['lora']\nwires = ['fp32']", (), "two methods are the same run"),
        ("[[methods]]\nrecipes = ['gone.toml']", (), "a recipe file cannot be read"),
        (None, (), "a methods file cannot be read"),
    ],
)
def test_a_wrong_methods_file_is_refused(
    results: Path,
    simulation: DirectSimulation,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str | None,
    flags: Any,
    message: str,
) -> None:
    (tmp_path / "mine.toml").write_text((RECIPES / "lora.toml").read_text(encoding="utf-8").replace('"lora"', '"mine"'), encoding="utf-8")
    if text is not None:
        (tmp_path / "grid.toml").write_text(text, encoding="utf-8")
    assert main(["--methods", str(tmp_path / "grid.toml"), *flags]) == 2
    assert message in capsys.readouterr().err
    assert simulation.trained == []


def test_other_steps_need_overwrite(results: Path, simulation: DirectSimulation) -> None:
    assert main(["--recipes", "lora", "--steps", "2", "--overwrite"]) == 0
    assert simulation.trained == [FEDERATED]
    assert record_of(results / "comparison__plans__fold_0")["steps_a_site"] == 2


def test_two_recipes_of_one_name_are_refused(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = RECIPES / "lora.toml"
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
