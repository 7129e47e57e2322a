"""Faults of a real federation, one after the other, with processes that are killed: ``make test-faults``."""

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.end_to_end.deployments import SERVER, Deployment, deployed, run_place

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]
FLAGS = "-f all --local_steps 1 --min_sites 1 --round_timeout 60"


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployed(tmp_path_factory.mktemp("faults")) as made:
        yield made


def missing(deployment: Deployment, seed: int) -> list[list[str]]:
    return [list(record["missing"]) for record in deployment.rounds(seed)]


def test_a_site_is_killed_while_it_prepares(deployment: Deployment) -> None:
    training = deployment.train(f"{FLAGS} --seed 3 --rounds 8")
    training.wait_for("query.plan: waiting for")
    deployment.kill("site_b")
    training.wait_for("round 1:")
    deployment.start("site_b")
    assert training.ended() == 0, training.printed
    found = missing(deployment, 3)
    assert found[0] == ["site_b"] and found[-1] == [], training.printed
    assert "site_b joins in round" in (deployment.site_folder("site_b", seed=3) / "logs" / "site.log").read_text()


def test_a_site_is_killed_while_it_scores(deployment: Deployment) -> None:
    training = deployment.train("-f 0 --local_steps 1 --min_sites 1 --round_timeout 60 --seed 4 --rounds 1")
    training.wait_for("round 1:")
    deployment.kill("site_b")
    assert training.ended() == 0, training.printed
    assert "it goes on without site_b" in training.printed
    deployment.start("site_b")


def test_only_the_process_that_trains_is_killed(deployment: Deployment) -> None:
    """As when a machine runs out of memory: the SuperNode lives on."""
    training = deployment.train(f"{FLAGS} --seed 5 --rounds 3")
    deployment.wait_for_message("site_b", run_place(5), "train.round", round_number=2)
    for process in psutil.Process(deployment.running["site_b"].pid).children(recursive=True):
        if "flwr-clientapp" in " ".join(process.cmdline()):
            os.kill(process.pid, signal.SIGKILL)
    assert training.ended() == 0, training.printed
    assert missing(deployment, 5) == [[], ["site_b"], []], "its SuperNode was never away"


def test_a_server_is_killed_and_the_run_goes_on_where_it_was(deployment: Deployment) -> None:
    training = deployment.train(f"{FLAGS} --seed 6 --rounds 3")
    deployment.wait_for_message("site_a", run_place(6), "train.round", round_number=2)
    deployment.kill(SERVER)
    assert training.ended() == 2 and "--c" in training.printed
    deployment.start_server()
    again = deployment.train(f"{FLAGS} --seed 6 --rounds 3 --c")
    assert again.ended() == 0, again.printed
    assert "continuing after round 1" in again.printed
    assert [record["round"] for record in deployment.rounds(6)] == [1, 2, 3]


def test_a_site_whose_folder_cannot_be_written_is_left_out(deployment: Deployment) -> None:
    """A file is in the way of its folder for this run."""
    blocked = deployment.site_folder("site_b", seed=7).parents[1]
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("")
    training = deployment.train(f"{FLAGS} --seed 7 --rounds 1")
    assert training.ended() == 0, training.printed
    assert missing(deployment, 7) == [["site_b"]]
    assert "it goes on without site_b: site_b reports " in training.printed
    assert str(deployment.data("site_b")) not in training.printed, "where it keeps what is its own affair"
    blocked.unlink()
