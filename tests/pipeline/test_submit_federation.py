"""What a federation is asked for, refused before anything is sent, and read again by the server."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.entrypoints.train_federated import main
from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.flower.submit import _chosen
from fedsam_pipeline.pipeline import submit_federation
from fedsam_pipeline.pipeline.federation_server import REQUEST_KEY, FederationRequest
from fedsam_pipeline.specs.recipe import load_recipe
from tests.pipeline.real_federations import NAME


def refused(capsys: pytest.CaptureFixture[str], command: str) -> str:
    assert main(command.split()) == 2
    return capsys.readouterr().err


@pytest.mark.usefixtures("users_folder")
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "-d None: the full name is needed"),
        ("-d 1", "-d 1: the full name is needed, such as Dataset001_Demo"),
        (f"-d {NAME} --protocol local", "--protocol local: hospitals train together"),
        (f"-d {NAME} --init folder", "--init: the sites do not have that folder"),
        (f"-d {NAME} --interpolate 0.5", "--interpolate: for one site that goes on alone"),
        (f"-d {NAME} -r nowhere.toml", "nowhere.toml"),
        (f"-d {NAME} -m sam9", "sam9"),
        (f"-d {NAME} -f 0-inner", "-f 0-inner: each site has its own folds"),
        (f"-d {NAME} --workers 2 --compile", "--compile: of the simulation"),
        (f"-d {NAME} -device cpu", "-device: each site has its own"),
        (f"-d {NAME} -p dataset", "this cannot be the name of a plan"),
        (f"-d {NAME} -p ../plans", "this cannot be the name of a plan"),
        (f"-d {NAME} --encrypt", "add --wire fp32"),
        (f"-d {NAME} --encrypt --wire fp32 --strategy krum", "krum compares the updates of single sites"),
        (f"-d {NAME} --encrypt --dry_run", "--encrypt"),
        (f"-d {NAME} --dry_run", "hospitals cannot be probed from here"),
    ],
)
def test_what_makes_no_federation(capsys: pytest.CaptureFixture[str], flags: str, says: str) -> None:
    assert says in refused(capsys, f"--superlink trial {flags}")


@pytest.mark.usefixtures("users_folder")
def test_sites_are_of_no_use_in_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    assert "in simulation they stand in dataset.json" in refused(capsys, "--sites site_a")
    assert "simulated sites do not go" in refused(capsys, "--wait_lost 60")


def test_an_unknown_connection(users_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FLWR_HOME", str(users_folder / "flower"))
    assert "a SuperLink that answers as trial" in refused(capsys, f"--superlink trial -d {NAME}")


def test_no_superlink_answers(users_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (users_folder / "flower").mkdir()
    (users_folder / "flower" / "config.toml").write_text('[superlink.trial]\naddress = "127.0.0.1:9"\ninsecure = true\n')
    monkeypatch.setenv("FLWR_HOME", str(users_folder / "flower"))
    assert "did not take the run" in refused(capsys, f"--superlink trial -d {NAME}")


@pytest.mark.usefixtures("users_folder")
def test_the_server_reads_what_the_command_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[FederationRequest] = []

    def submit(superlink: str, sites: Sequence[str] | None, configuration: Callable[[tuple[str, ...]], dict[str, str]]) -> None:
        assert (superlink, sites) == ("trial", ["site_b", "site_a"])
        sent.append(FederationRequest.from_json(configuration(("site_a", "site_b"))[REQUEST_KEY]))

    monkeypatch.setattr(submit_federation, "submit", submit)
    flags = "-m tiny_random --rounds 3 --lr 0.01 --strategy fedprox --strategy_option proximal_mu=0.5 --wire int8 --seed 4 --c"
    assert main(["-d", NAME, "--superlink", "trial", "--sites", "site_b,site_a", *flags.split()]) == 0
    (request,) = sent
    assert (request.dataset, request.sites, request.base_model) == (NAME, ("site_a", "site_b"), "tiny_random")
    assert request.recipe == load_recipe("default").to_dict()
    training = request.training
    assert (training.rounds, training.learning_rate, training.strategy, training.wire) == (3, 0.01, "fedprox", "int8")
    assert (training.strategy_options, training.seed, training.resume) == ({"proximal_mu": 0.5}, 4, True)


GOOD: dict[str, Any] = {"dataset": NAME, "sites": ["site_a"], "training": {}, "recipe": {}, "base_model": "tiny_random"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 10_000,
        json.dumps(GOOD | {"dataset": "../elsewhere"}),
        json.dumps(GOOD | {"sites": []}),
        json.dumps(GOOD | {"sites": ["../site"]}),
        json.dumps(GOOD | {"training": {"flag": 1}}),
        json.dumps(GOOD | {"training": {"plans_name": "../../plans"}}),
        json.dumps(GOOD | {"training": {"plans_name": "dataset"}}),
        json.dumps(GOOD | {"training": {"fold": "0/../../x"}}),
        json.dumps(GOOD | {"training": {"configuration": "../x"}}),
        json.dumps(GOOD | {"more": 1}),
    ],
)
def test_no_request(text: str) -> None:
    with pytest.raises(FedsamError, match="holds no request"):
        FederationRequest.from_json(text)
    assert FederationRequest.from_json(json.dumps(GOOD)).sites == ("site_a",)


def test_the_sites_of_a_run() -> None:
    assert _chosen("trial", None, ["site_b", "site_a"]) == ("site_a", "site_b")
    assert _chosen("trial", ["site_b"], ["site_b", "site_a"]) == ("site_b",)
    assert _chosen("trial", ["site_b"], ["site_b", "site_a", "site_a"]) == ("site_b",)


@pytest.mark.parametrize(
    ("sites", "registered", "says"),
    [
        (None, [], "no site at all"),
        (["site_c"], ["site_a"], r"site_c not registered[\s\S]*of site_a[\s\S]*flwr supernode register keys/SITE.pub trial"),
        (None, ["site_a", "site_a"], "site_a twice"),
        (["site_a"], ["site_a", "site_a", "site_b"], "site_a twice"),
    ],
)
def test_sites_that_nobody_knows(sites: list[str] | None, registered: list[str], says: str) -> None:
    with pytest.raises(FedsamError, match=says):
        _chosen("trial", sites, registered)
