"""Work on cases: order, failures with their case, real processes."""

import logging
import os
import signal

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.workers import CaseWorkers

log = logging.getLogger(__name__)


def shout(case: str) -> str:
    if case == "bad":
        raise FedsamError("a file is bad", path="x.nii", fix="mend it")
    if case == "odd":
        raise ZeroDivisionError(case)
    if case == "loud":
        log.warning("case %s is unusual", case)
    return case.upper()


def die(case: str) -> str:
    if case == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return case


@pytest.mark.parametrize("num_processes", [1, 2])
def test_outcomes_come_in_order_and_failures_harm_no_other(num_processes: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), CaseWorkers(num_processes) as workers:
        outcomes = list(workers.work(shout, ["b", "bad", "a", "odd", "loud"], "test"))
        assert [outcome.result for outcome in workers.work(shout, ["again"], "test")] == ["AGAIN"]
    assert [outcome.case for outcome in outcomes] == ["b", "bad", "a", "odd", "loud"]
    assert [outcome.result for outcome in outcomes] == ["B", None, "A", None, "LOUD"]
    error = outcomes[1].error
    assert isinstance(error, FedsamError)
    assert (error.what, error.path, error.fix) == ("a file is bad", "x.nii", "mend it")
    assert isinstance(outcomes[3].error, ZeroDivisionError)
    assert "in shout" in outcomes[3].trace
    assert "case loud is unusual" in caplog.text


def test_a_killed_worker_is_told() -> None:
    with CaseWorkers(2) as workers, pytest.raises(FedsamError, match="a worker process was killed") as caught:
        list(workers.work(die, ["a", "b", "c"], "test"))
    assert "-np 1" in str(caught.value)


def test_no_case_is_no_work() -> None:
    with CaseWorkers(1) as workers:
        assert list(workers.work(shout, [], "test")) == []
