"""``fedsam_train_federated --dp_epsilon ...``: from flags to run, model card and report, and everything that excludes it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.dataset.raw_checks import is_safe_name
from fedsam_pipeline.entrypoints.export_model import main as export_model
from fedsam_pipeline.entrypoints.report import main as report
from fedsam_pipeline.entrypoints.train_federated import main
from fedsam_pipeline.model.bundle import load_bundle
from fedsam_pipeline.pipeline.train_request import TrainRequest, run_place
from fedsam_pipeline.specs.recipe import load_recipe
from tests.pipeline.comparisons import NAME

PRIVATE = ["--dp_epsilon", "6", "--dp_delta", "1e-3", "--dp_clip", "0.5"]


def test_a_private_run_says_what_it_spent_everywhere(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRIVATE, "--rounds", "2"]) == 0
    capsys.readouterr()
    (fold,) = workplace.glob(f"results/{NAME}/default__plans__main/*/fold_0")
    assert fold.parent.name == "federated__fedavg-equal-int4-dp6__seed0"
    run = json.loads((fold / "run.json").read_text(encoding="utf-8"))
    assert run["privacy"] == {"epsilon": 6.0, "delta": 1e-3, "clip": 0.5}
    spent = run["privacy_spent"]
    assert spent == json.loads((fold / "privacy.json").read_text(encoding="utf-8"))["spent"]
    assert spent["releases"] == 2 and 5.99 < spent["epsilon"] <= 6
    log = next((fold / "logs").glob("train*")).read_text(encoding="utf-8")
    assert f"privacy spent: epsilon {spent['epsilon']:.4f} of 6 at delta 0.001" in log
    assert not (fold.parent / "postprocessing.json").exists()  # it would come from exact sums
    load_bundle(fold)

    assert export_model(["-d", "1", "-o", "model.zip"]) == 0
    shutil.unpack_archive("model.zip", "unpacked")
    (card,) = Path("unpacked").rglob("MODEL_CARD.md")
    said = f"epsilon {spent['epsilon']:.4g} at delta 0.001 after 2 releases"
    assert said in card.read_text(encoding="utf-8")
    assert report(["-d", "1", "-o", "report.html"]) == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert said in page and "not losses and scores" in page


def test_a_run_without_noise_says_so(workplace: Path) -> None:
    assert main(["--rounds", "1"]) == 0
    (fold,) = workplace.glob(f"results/{NAME}/default__plans__main/*/fold_0")
    assert json.loads((fold / "run.json").read_text(encoding="utf-8"))["privacy_spent"] is None
    assert not (fold / "privacy.json").exists()
    assert report(["-d", "1", "-o", "report.html"]) == 0
    assert "no noise was added, so there is no differential privacy" in Path("report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--dp_epsilon", "6"], "differential privacy needs three numbers"),
        (["--dp_clip", "1", "--dp_delta", "1e-3"], "found:    --dp_delta, --dp_clip"),
        ([*PRIVATE, "--dp_delta", "0.5"], "this delta allows a whole site to be given away"),
        ([*PRIVATE, "--strategy", "fedmedian"], "fedmedian has no bound on what one site can change"),
        ([*PRIVATE, "-r", "flap_sam", "--lora_method", "flexlora"], "flexlora has no bound on what one site can change"),
        ([*PRIVATE, "-r", "flap_sam", "--lora_method", "rolora"], "rolora keeps factors as they are"),
        ([*PRIVATE, "--weighting", "size"], "with differential privacy every site weighs the same"),
        ([*PRIVATE, "--weighting", "validation"], "with differential privacy every site weighs the same"),
        ([*PRIVATE, "--encrypt", "--wire", "fp32"], "the server cannot clip updates that it cannot see"),
        ([*PRIVATE, "--protocol", "local"], "nothing is aggregated and nothing leaves it"),
        ([*PRIVATE, "--protocol", "centralized"], "nothing is aggregated and nothing leaves it"),
        (
            [*PRIVATE, "--dp_epsilon", "1e-9", "--dp_delta", "1e-9", "--rounds", "1000"],
            "no noise keeps so many rounds to this privacy budget",
        ),
    ],
)
def test_what_excludes_it_is_refused_before_anything_is_trained(
    workplace: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert main(flags) == 2
    assert says in capsys.readouterr().err
    assert not (workplace / "results").exists() or not list((workplace / "results").rglob("run.json"))


def test_a_run_is_not_continued_with_another_budget(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRIVATE, "--rounds", "1"]) == 0
    assert main([*PRIVATE, "--rounds", "1", "--dp_clip", "0.7", "--c"]) == 2
    assert "the run cannot be continued with other settings" in capsys.readouterr().err


def test_hospitals_are_not_asked_for_what_is_refused(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsam_pipeline.pipeline.submit_federation.submit", lambda _name, _sites, configuration: configuration(("a", "b")))
    assert main(["--superlink", "trial", "-d", NAME, *PRIVATE, "--strategy", "fedavgm", "--weighting", "size"]) == 2
    assert "with differential privacy every site weighs the same" in capsys.readouterr().err
    assert main(["--superlink", "trial", "-d", NAME, *PRIVATE]) == 0


def test_a_run_that_was_killed_says_what_it_spent(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_arguments: object, **_named: object) -> None:
        (path,) = workplace.glob(f"results/{NAME}/default__plans__main/*/fold_0/run.json")
        seen.append(json.loads(path.read_text(encoding="utf-8")))
        raise SystemExit(9)

    seen: list[dict[str, Any]] = []
    with monkeypatch.context() as patch:
        patch.setattr("fedsam_pipeline.flower.round_loop.RoundLoop.evaluate", killed)
        with pytest.raises(SystemExit):
            main([*PRIVATE, "--rounds", "2"])
    assert seen[0]["status"] == "running" and seen[0]["privacy_spent"]["releases"] == 2  # on the disk before anything can kill it
    (fold,) = workplace.glob(f"results/{NAME}/default__plans__main/*/fold_0")
    (fold / "run.json").write_text(json.dumps(seen[0] | {"privacy_spent": None}), encoding="utf-8")  # and if it were not
    assert main([*PRIVATE, "--rounds", "2", "--c"]) == 0
    run = json.loads((fold / "run.json").read_text(encoding="utf-8"))
    assert run["privacy_spent"] == seen[0]["privacy_spent"]
    assert report(["-d", "1", "-o", "report.html"]) == 0
    assert "Differential privacy of sites: epsilon" in Path("report.html").read_text(encoding="utf-8")


def test_overwriting_a_private_run_says_what_it_spent(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PRIVATE, "--rounds", "1"]) == 0
    capsys.readouterr()
    assert main([*PRIVATE, "--rounds", "1", "--overwrite"]) == 0
    assert "the run before spent epsilon 6 on these sites; it is forgotten here, and counts all the same" in capsys.readouterr().err
    (ledger,) = workplace.glob(f"results/{NAME}/default__plans__main/*/fold_0/privacy.json")
    ledger.write_text("{}", encoding="utf-8")
    assert main([*PRIVATE, "--rounds", "1", "--overwrite"]) == 2
    assert "the privacy ledger of the run before cannot be used" in capsys.readouterr().err


@pytest.mark.parametrize("epsilon", [0.5, 8.0, 1e6, 1e-7])
def test_the_folder_of_a_private_run_has_a_name_that_a_server_takes(epsilon: float) -> None:
    place = run_place(load_recipe("default"), "plans", TrainRequest(dp_epsilon=epsilon), "federated")
    assert all(map(is_safe_name, place.split("/"))) and "-dp" in place
