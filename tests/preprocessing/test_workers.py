"""Work on cases: order, failures with their case, real processes."""

import logging
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.preprocessing.workers import AHEAD, CaseWorkers, WorkerKilled

log = logging.getLogger(__name__)


def shout(case: str) -> str:
    if case == "bad":
        raise FedsamError("a file is bad", path="x.nii", fix="mend it")
    if case == "odd":
        raise ZeroDivisionError(case)
    if case == "loud":
        log.warning("case %s is unusual", case)
    return case.upper()


def die(folder: Path, case: str) -> str:
    with (folder / case).open("a", encoding="utf-8") as file:
        file.write("begun\n")
    if case == "c":
        os.kill(os.getpid(), signal.SIGKILL)
    return case


class Large:
    """A result that is counted in the process it came to."""

    alive: ClassVar[WeakSet[Any]] = WeakSet()

    def __init__(self, case: str) -> None:
        self.case = case

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        Large.alive.add(self)


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


def test_a_killed_worker_costs_its_own_case_and_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    with CaseWorkers(2) as workers:
        outcomes = list(workers.work(partial(die, tmp_path), cases, "test"))
    assert [outcome.case for outcome in outcomes] == cases
    assert [outcome.case for outcome in outcomes if outcome.error is not None] == ["c"]
    assert [outcome.result for outcome in outcomes if outcome.error is None] == [case for case in cases if case != "c"]
    assert isinstance(outcomes[2].error, WorkerKilled) and "-np 1" in str(outcomes[2].error)
    twice = [path.name for path in tmp_path.iterdir() if path.read_text(encoding="utf-8") != "begun\n"]
    assert "c" in twice and len(twice) <= 2  # what was in work when the process died, and nothing else, was begun again
    assert "a worker process was killed; " in caplog.text


def test_neither_cases_nor_results_pile_up(tmp_path: Path) -> None:
    cases = [f"case_{i:02}" for i in range(40)]
    with CaseWorkers(2) as workers:
        seen = []
        for outcome in workers.work(Large, cases, "test"):
            assert outcome.result is not None
            seen.append(outcome.result.case)
            assert len(Large.alive) <= 2 * AHEAD + 1
    assert seen == cases

    with CaseWorkers(2) as workers:
        next(workers.work(partial(die, tmp_path), cases, "test"))
    assert len(list(tmp_path.iterdir())) <= 2 * AHEAD  # who takes one outcome has few cases worked on


def test_no_case_is_no_work() -> None:
    with CaseWorkers(1) as workers:
        assert list(workers.work(shout, [], "test")) == []
