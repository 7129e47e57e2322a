"""What a run's wall time went into: start-up, the sites' own work, and what the federation adds to it."""

import time
from typing import Any

import psutil

from fedsam_pipeline.flower.work_clock import WorkClock


def process_started() -> float:
    """When this process was started, on the clock of ``time.perf_counter``: imports are part of a command's start-up."""
    return time.perf_counter() - max(0.0, time.time() - psutil.Process().create_time())


def run_timing(clock: WorkClock, *, started: float, ended: float, workers: int, first_round: int) -> dict[str, Any] | None:
    """The ``timing`` of ``run.json``; ``None`` where no site worked.

    Args:
        clock: of the sites' work.
        started: when the command, or this run of several, was started, by ``time.perf_counter``.
        ended: when all was written and the workers were gone.
        workers: sites that computed at the same time.
        first_round: of this process: after a continuation, not 1.
    """
    schedule = clock.schedule_seconds(workers)
    if clock.began is None or not schedule > 0:
        return None
    seconds = ended - clock.began
    return {
        "first_round": first_round,
        "start_up_seconds": clock.began - started,
        "seconds": seconds,
        "site_seconds": clock.site_seconds,
        "schedule_seconds": schedule,
        "overhead": seconds / schedule,
    }


def timing_line(timing: dict[str, Any], workers: int) -> str:
    """One line of text.

    Args:
        timing: of ``run.json``.
        workers: sites that computed at the same time.
    """
    own, schedule = timing["site_seconds"], timing["schedule_seconds"]
    alone = f"{own:.1f} s" if workers == 1 else f"{own:.1f} s, {schedule:.1f} s on {workers} workers"
    since = "" if timing["first_round"] == 1 else f" since round {timing['first_round']}"
    return (
        f"overhead {timing['overhead']:.2f}: {timing['seconds']:.1f} s after start-up{since} for {alone} of the sites' own work; "
        f"start-up {timing['start_up_seconds']:.1f} s"
    )
