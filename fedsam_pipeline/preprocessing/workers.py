"""Work on many cases in parallel processes; a case that fails is named and harms no other."""

import logging
import multiprocessing
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from typing import Generic, Self, TypeVar

import torch
from tqdm import tqdm

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.memory import keep_freed_memory

T = TypeVar("T")

AHEAD = 4
"""cases handed out for each worker before the first of them is taken back: a slow case keeps no worker waiting, and no result piles up"""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CaseOutcome(Generic[T]):
    """What became of one case: either ``result`` or ``error`` with its ``trace``."""

    case: str
    result: T | None = None
    error: Exception | None = None
    trace: str = ""
    warnings: tuple[str, ...] = ()
    """what a worker process logged meanwhile; in this process it went to the log directly"""


class CaseWorkers:
    """Processes that work on cases; to be used in a ``with`` block. They start with the first work and serve all of it.

    At most ``num_processes`` cases are in memory, one a worker, and ``AHEAD`` times as many results, however many cases there are. Workers
    are started afresh (``spawn``), so functions and their results must travel between processes. With one process everything runs in
    this one.
    """

    def __init__(self, num_processes: int) -> None:
        self._num_processes = num_processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def work(self, function: Callable[[str], T], cases: Sequence[str], title: str) -> Iterator[CaseOutcome[T]]:
        """Calls ``function`` for every case and yields the outcomes in the order of ``cases``.

        Args:
            function: what to do with a case.
            cases: names.
            title: beside the progress bar.

        Raises:
            FedsamError: a worker was killed, for want of memory as a rule; names the cases that were in work.
        """
        with tqdm(total=len(cases), desc=title, unit="case", disable=None) as bar:
            for outcome in self._outcomes(function, cases):
                for warning in outcome.warnings:
                    log.warning("%s", warning)
                if outcome.error is not None:
                    log.debug("case %s failed:\n%s", outcome.case, outcome.trace)
                bar.update()
                yield outcome

    def _outcomes(self, function: Callable[[str], T], cases: Sequence[str]) -> Iterator[CaseOutcome[T]]:
        if self._num_processes <= 1:
            for case in cases:
                yield _attempt(function, case)
            return
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._num_processes, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
            )
        remaining = iter(cases)
        waiting: deque[tuple[str, Future[CaseOutcome[T]]]] = deque()
        try:
            while True:
                for case in islice(remaining, AHEAD * self._num_processes - len(waiting)):
                    waiting.append((case, self._pool.submit(_attempt_in_worker, function, case)))
                if not waiting:
                    return
                outcome = waiting[0][1].result()
                waiting.popleft()
                yield outcome
        except BrokenProcessPool as error:
            unfinished = [case for case, future in waiting if not future.done() or future.exception() is not None]
            raise FedsamError(
                "a worker process was killed, most likely because memory ran out",
                found=f"in work were {', '.join(unfinished[: self._num_processes])}",  # workers take cases in their order
                expected=f"memory for {self._num_processes} cases at a time",
                fix="use fewer processes: -np 1",
            ) from error
        finally:
            for _, future in waiting:
                future.cancel()


def _attempt(function: Callable[[str], T], case: str) -> CaseOutcome[T]:
    try:
        return CaseOutcome(case, result=function(case))
    except Exception as error:  # handed to the caller with its case, never dropped
        return CaseOutcome(case, error=error, trace=traceback.format_exc())


class _Collector(logging.Handler):
    """Keeps a worker's warnings until its case is done: workers have no log file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(self.format(record))


def _attempt_in_worker(function: Callable[[str], T], case: str) -> CaseOutcome[T]:
    collector = _Collector()
    logging.getLogger().addHandler(collector)
    try:
        outcome = _attempt(function, case)
    finally:
        logging.getLogger().removeHandler(collector)
    return replace(outcome, warnings=tuple(collector.messages))


def _start_worker() -> None:
    torch.set_num_threads(1)  # the processes share the cores
    keep_freed_memory()
