"""Whole runs in Flower's simulation with the random tiny model: interruption, continuation, the other protocols."""

import json
import re
import signal
from pathlib import Path

import pytest
import torch

from fedsam_pipeline.model.trained_files import load_tensors
from tests.end_to_end.commands import run, stop_when

SITES = ("site_a", "site_b", "site_c")
FLAGS = "--rounds 4 --local_steps 3"
RUN = Path("Dataset001_Demo/default__plans__main")
FOLD = RUN / "federated__fedavg-int4__seed0" / "fold_0"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny cohort, planned for the random tiny model."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder, "fedsam_make_demo_dataset --size tiny")
    run(folder, "fedsam_plan_and_preprocess -d 1 -m tiny_random")
    path = folder / "fedsam_data/preprocessed/Dataset001_Demo/plans.json"
    plans = json.loads(path.read_text(encoding="utf-8"))
    plans["training"] |= {"effective_batch": 4}
    path.write_text(json.dumps(plans), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def uninterrupted(planned: Path) -> Path:
    """Results of a federated run from start to end."""
    run(planned, f"fedsam_train_federated {FLAGS}")
    return planned / "fedsam_data/results"


def scored_sites(planned: Path) -> list[str]:
    """Sites with a validation case in fold 0: a small site has none in some folds."""
    folder = planned / "fedsam_data/preprocessed/Dataset001_Demo"
    val = json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))[0]["val"]
    sites = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))["sites"]
    return sorted(site for site, cases in sites.items() if set(cases) & set(val))


def test_a_run_tells_what_the_federation_cost(uninterrupted: Path) -> None:
    state = json.loads((uninterrupted / FOLD / "run.json").read_text(encoding="utf-8"))
    timing = state["timing"]
    assert timing["first_round"] == 1
    assert 0 < timing["schedule_seconds"] <= timing["site_seconds"] <= state["workers"] * timing["schedule_seconds"] * (1 + 1e-9)
    assert timing["overhead"] == pytest.approx(timing["seconds"] / timing["schedule_seconds"])
    assert timing["overhead"] > 1 and timing["start_up_seconds"] > 0
    assert state["server_peak_memory_bytes"] > 50 << 20
    lines = [json.loads(line) for line in (uninterrupted / FOLD / "progress.jsonl").read_text(encoding="utf-8").splitlines()]
    for site in (site for line in lines if line["event"] == "round" for site in line["sites"].values()):
        assert site["busy_seconds"] >= site["seconds"] + site["validation_seconds"]


@pytest.mark.parametrize("protocol", ["federated", "local"])
def test_a_dry_run_estimates_the_bytes_of_the_run_and_writes_nothing(planned: Path, uninterrupted: Path, protocol: str) -> None:
    before = sorted(planned.rglob("*"))
    text = run(planned, f"fedsam_train_federated {FLAGS} --dry_run --protocol {protocol}")
    assert sorted(planned.rglob("*")) == before
    rows = {line[:16].strip(): line[16:].split() for line in text.splitlines() if line[:1].isalpha()}
    a_round, in_all = (float(rows["time"][at]) * {"s": 1, "min": 60}[rows["time"][at + 1]] for at in (0, 2))
    assert in_all > a_round > 0
    assert rows["memory"][1] in ("MB", "GB") and rows["memory"][2] in ("2", "1")
    if protocol == "local":
        assert "3 runs of 4 rounds" in text
        return
    traffic = json.loads((uninterrupted / FOLD / "communication.json").read_text(encoding="utf-8"))["rounds"]
    units = {"kB": 1e3, "MB": 1e6}
    for name, way in (("from the sites", "up"), ("to the sites", "down")):
        true = sum(site[way]["bytes_message"] for entry in traffic for site in entry["sites"].values())
        assert float(rows[name][2]) * units[rows[name][3]] == pytest.approx(true, rel=0.3)


def builds(run_folder: Path) -> dict[str, int]:
    """How often a base model was built, by the site whose message caused it."""
    logs = sorted(run_folder.glob("fold_0/sites/*/logs/site.log"))
    return {path.parents[1].name: path.read_text(encoding="utf-8").count(": built tiny_random") for path in logs}


def test_the_base_model_is_built_once_a_worker_not_once_a_round(uninterrupted: Path) -> None:
    counted = builds(uninterrupted / RUN / "federated__fedavg-int4__seed0")
    workers = json.loads((uninterrupted / FOLD / "run.json").read_text(encoding="utf-8"))["workers"]
    assert sorted(counted) == list(SITES)
    assert 1 <= sum(counted.values()) <= workers < 4 * len(SITES)


def test_a_run_that_was_interrupted_and_killed_ends_like_one_that_was_not(planned: Path, uninterrupted: Path) -> None:
    results = planned / "stopped"
    variables = {"fedsam_results": str(results)}
    fold = results / FOLD

    def round_done(number: int) -> bool:
        return (fold / "checkpoints" / f"round_{number:04d}").is_dir()

    code, text = stop_when(planned, f"fedsam_train_federated {FLAGS}", lambda: round_done(1), signal.SIGINT, variables)
    assert code == 130, text
    assert text.endswith("interrupted\n")
    assert json.loads((fold / "run.json").read_text(encoding="utf-8"))["status"] == "interrupted"
    assert not round_done(4)

    command = f"fedsam_train_federated {FLAGS} --c"
    code, text = stop_when(planned, command, lambda: round_done(2) or round_done(3), signal.SIGKILL, variables)
    assert code == -signal.SIGKILL, text
    assert json.loads((fold / "run.json").read_text(encoding="utf-8"))["status"] == "running"
    assert not (fold / "bundle.json").exists()

    run(planned, command, variables)
    whole = uninterrupted / FOLD
    for name in ("adapter.safetensors", "bundle.json", "manifest.json"):
        assert (fold / name).read_bytes() == (whole / name).read_bytes(), name
    assert progress(fold) == progress(whole)
    traffic = [json.loads((each / "communication.json").read_text(encoding="utf-8"))["rounds"] for each in (fold, whole)]
    assert [(entry["message"], entry["round"]) for entry in traffic[0]] == [(entry["message"], entry["round"]) for entry in traffic[1]]
    assert not [path for path in results.rglob(".tmp*") if "sites" not in path.parts]


def progress(fold: Path) -> list[object]:
    """The lines of ``progress.jsonl`` without what a clock says, and bytes, which hold an id of random letters."""
    text = (fold / "progress.jsonl").read_text(encoding="utf-8")
    without_clock = re.sub(r'"([a-z]+_)?seconds": [0-9.e-]+', '"seconds": 0', text)
    return [json.loads(line) for line in re.sub(r'"bytes_(up|down)": \d+', '"bytes": 0', without_clock).splitlines()]


def test_continuing_a_finished_run_changes_nothing(planned: Path, uninterrupted: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in (uninterrupted / FOLD).rglob("*") if path.is_file()}
    assert "Dice" in run(planned, f"fedsam_train_federated {FLAGS} --c")
    assert {path: path.stat().st_mtime_ns for path in (uninterrupted / FOLD).rglob("*") if path.is_file()} == files


def test_local_training_is_one_run_a_site(planned: Path) -> None:
    results = planned / "local"
    text = run(planned, "fedsam_train_federated --protocol local --rounds 2 --local_steps 1", {"fedsam_results": str(results)})
    for site in SITES:
        run_folder = results / RUN / f"local-{site}__fedavg__seed0"
        state = json.loads((run_folder / "fold_0" / "run.json").read_text(encoding="utf-8"))
        assert (state["status"], state["protocol"], state["sites"]) == ("done", "local", [site])
        assert (run_folder / "fold_0" / "adapter.safetensors").is_file()
        assert builds(run_folder) == {site: 1}
        assert (state["final"]["dice"] is not None) == (site in scored_sites(planned))
    assert all(f"\n{site} " in text for site in scored_sites(planned))
    adapters = {path.read_bytes() for path in results.rglob("adapter.safetensors")}
    assert len(adapters) == len(SITES)


def test_centralized_training_takes_the_summed_steps_on_all_cases(planned: Path) -> None:
    results = planned / "centralized"
    text = run(planned, "fedsam_train_federated --protocol centralized --rounds 2 --local_steps 1", {"fedsam_results": str(results)})
    run_folder = results / RUN / "centralized__fedavg__seed0"
    state = json.loads((run_folder / "fold_0" / "run.json").read_text(encoding="utf-8"))
    assert (state["status"], state["sites"], state["local_steps"]) == ("done", ["pooled"], len(SITES))
    assert sorted(state["final"]["sites"]) == scored_sites(planned)  # scored under the sites that own the cases
    assert all(f"\n{site} " in text for site in scored_sites(planned))
    assert builds(run_folder) == {"pooled": 1}
    chosen = json.loads((run_folder / "postprocessing.json").read_text(encoding="utf-8"))
    assert chosen["decisions"] and chosen["sites"] == ["pooled"]  # one site has no floor: nothing leaves it


def test_sites_below_the_privacy_floor_choose_no_postprocessing(uninterrupted: Path) -> None:
    chosen = json.loads((uninterrupted / FOLD.parent / "postprocessing.json").read_text(encoding="utf-8"))
    assert (chosen["steps"], chosen["decisions"], chosen["sites"]) == ([], [], [])
    assert chosen["why"]["choice"].startswith("not chosen: no site told anything; 3 told nothing")


def test_what_stays_at_a_site_gives_it_a_model_of_its_own(planned: Path) -> None:
    printed = run(planned, "fedsam_train_federated -r fedsa_lora --rounds 2 --local_steps 2 --val_every 0")
    assert printed.index("the model that all sites share") < printed.index("each site's own model")
    fold = planned / "fedsam_data/results/Dataset001_Demo/fedsa_lora__plans__main/federated__fedavg__seed0/fold_0"
    summary = json.loads((fold / "validation/summary.json").read_text(encoding="utf-8"))
    assert sorted(summary["personal"]["sites"]) == sorted(summary["sites"]) == scored_sites(planned)
    images = planned / "fedsam_data/raw/Dataset001_Demo/imagesTs"
    (planned / "one").mkdir()
    image = sorted(images.iterdir())[0]
    (planned / "one" / image.name).write_bytes(image.read_bytes())
    run(planned, f"fedsam_predict -i one -o personal_masks -m {fold}/sites/site_a/personal")
    assert len(list((planned / "personal_masks").glob("*.nii.gz"))) == 1


def test_a_run_starts_from_a_trained_adapter(planned: Path, uninterrupted: Path) -> None:
    start = uninterrupted / FOLD
    run(planned, f"fedsam_train_federated --init {start} --rounds 1 --local_steps 1 --lr 1e-12")
    (folder,) = (planned / "fedsam_data/results/Dataset001_Demo").glob("default-from_*__plans__main")
    adapted = folder / "federated__fedavg-int4-lr1e-12__seed0" / "fold_0"
    before, after = (load_tensors(path / "adapter.safetensors") for path in (start, adapted))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
