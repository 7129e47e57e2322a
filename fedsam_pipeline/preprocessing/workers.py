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

from fedsam_pipeline.memory import keep_freed_memory

T = TypeVar("T")

AHEAD = 4
"""cases handed out for each worker before the first of them is taken back: a slow case keeps no worker waiting, and no result piles up"""

log = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")


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

        A case whose worker is killed has ``WorkerKilled`` as its error. The cases that were in work beside it are done again, one at a
        time, which tells them from it.
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
        finished: dict[str, CaseOutcome[T]] = {}
        remaining = deque(cases)
        while remaining:
            waiting: deque[tuple[str, Future[CaseOutcome[T]]]] = deque()
            try:
                yield from self._through_pool(function, remaining, waiting, finished)
            except BrokenProcessPool:
                self._pool = None
                done = {case for case, future in waiting if future.done() and future.exception() is None}
                finished |= {case: future.result() for case, future in waiting if case in done}
                in_work = [case for case, _ in waiting if case not in done][: self._num_processes]  # workers take cases in their order
                log.warning("a worker process was killed; %s: done again one at a time", ", ".join(in_work))
                finished |= {case: _alone(function, case) for case in in_work}
            finally:
                for _, future in waiting:
                    future.cancel()

    def _through_pool(
        self,
        function: Callable[[str], T],
        remaining: deque[str],
        waiting: deque[tuple[str, Future[CaseOutcome[T]]]],
        finished: dict[str, CaseOutcome[T]],
    ) -> Iterator[CaseOutcome[T]]:
        """Yields the outcomes of ``remaining`` and takes each out; ``finished`` ones are not worked on."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._num_processes, mp_context=_SPAWN, initializer=_start_worker)
        ahead = iter([case for case in remaining if case not in finished])
        while remaining:
            for case in islice(ahead, AHEAD * self._num_processes - len(waiting)):
                waiting.append((case, self._pool.submit(_attempt_in_worker, function, case)))
            if remaining[0] in finished:
                outcome = finished.pop(remaining[0])
            else:
                outcome = waiting[0][1].result()
                waiting.popleft()
            remaining.popleft()
            yield outcome


class WorkerKilled(RuntimeError):
    """A worker process ended without a word."""


def _alone(function: Callable[[str], T], case: str) -> CaseOutcome[T]:
    """One case in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_SPAWN, initializer=_start_worker) as pool:
        try:
            return pool.submit(_attempt_in_worker, function, case).result()
        except BrokenProcessPool:
            error = WorkerKilled(f"the worker process of {case} was killed, most likely because memory ran out; try -np 1")
            return CaseOutcome(case, error=error)


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
