"""A federation as hospitals run it, on loopback: the kit's SuperLink and SuperNodes, TLS, node keys, a signed app. No Ray."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from fedsam_pipeline.entrypoints.train_federated import main
from fedsam_pipeline.flower import submit
from fedsam_pipeline.flower.deployment.signing import APP
from tests.end_to_end.commands import run
from tests.end_to_end.deployments import SITES, Deployment, deployed, run_place
from tests.pipeline.real_federations import NAME

pytestmark = pytest.mark.timeout(600)  # the messages of a federation start a process each


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("deployment")) as made:
        yield made


def test_two_hospitals_train_from_raw_data_to_the_model(deployment: Deployment) -> None:
    flags = "-m tiny_random -f all --rounds 1 --local_steps 1"  # few messages: each starts a process at each site
    printed = run(deployment.folder, f"fedsam_train_federated -d {NAME} --superlink trial {flags}", deployment.variables)
    assert "planning from site_a, site_b" in printed and "round 1:" in printed
    results = deployment.results()
    assert (results / "adapter.safetensors").is_file()
    beyond = [path for path in (deployment.folder / "server").rglob("*") if path.suffix in (".gz", ".nii", ".b2nd", ".mha")]
    assert not beyond, "images stay where they are"
    for site in SITES:
        run(
            deployment.folder,
            f"fedsam_audit verify {deployment.site_folder(site)} --heads {results / 'audit_heads.jsonl'}",
            deployment.variables,
        )


def test_a_site_does_not_run_an_app_that_nobody_signed(
    deployment: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(APP, tmp_path / "other")
    project = other / "pyproject.toml"
    project.write_text(project.read_text().replace("1.0.0", "1.0.1"))
    for name, value in deployment.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(submit, "installed_app", lambda: build_fab_from_disk(other))
    assert main(["-d", NAME, "--superlink", "trial", "-m", "tiny_random", "--seed", "1"]) == 2
    printed = capfd.readouterr()
    assert "none of its trusted entities has signed it" in printed.out and "the run did not end well" in printed.err


def test_a_site_is_killed_while_it_trains_and_comes_back(deployment: Deployment) -> None:
    training = deployment.train("-f all --seed 2 --rounds 6 --local_steps 1 --min_sites 1 --round_timeout 60")
    deployment.wait_for_message("site_b", run_place(2), "train.round", round_number=2)
    deployment.kill("site_b")
    deployment.start("site_b")
    assert training.ended() == 0, training.printed
    missing = [record["missing"] for record in deployment.rounds(seed=2)]
    assert missing[0] == missing[-1] == {} and list(missing[1]) == ["site_b"], training.printed
    log = (deployment.site_folder("site_b", seed=2) / "logs" / "site.log").read_text()
    assert "site_b has no later state" in log and "goes on from its state of round 1" in log
