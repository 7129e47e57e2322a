"""What a run's wall time went into."""

import json
import math

import pytest

from fedsam_pipeline.flower.work_clock import WorkClock
from fedsam_pipeline.pipeline.run_timing import run_timing, timing_line


def test_overhead_is_wall_time_after_start_up_over_the_best_use_of_the_workers() -> None:
    clock = WorkClock()
    for _ in range(2):
        clock.next_exchange(now=100.0)
        for own in (10.0, 10.0, 20.0):
            clock.answered(now=150.0, busy=own + 1, own=own)
    timing = run_timing(clock, started=100.0, ended=173.0, workers=2, first_round=1)
    assert timing == {
        "first_round": 1,
        "start_up_seconds": pytest.approx(29.0),
        "seconds": pytest.approx(44.0),
        "site_seconds": 80.0,
        "schedule_seconds": 40.0,
        "overhead": pytest.approx(1.1),
    }
    line = "overhead 1.10: 44.0 s after start-up for 80.0 s, 40.0 s on 2 workers of the sites' own work; start-up 29.0 s"
    assert timing_line(timing, 2) == line
    assert " since round 5 for 80.0 s of the sites' own work" in timing_line(timing | {"first_round": 5}, 1)


@pytest.mark.parametrize("said", [1e308, math.inf, -math.inf])
def test_what_a_site_says_of_its_time_can_be_written_down(said: float) -> None:
    clock = WorkClock()
    clock.next_exchange(now=110.0)
    clock.answered(now=120.0, busy=4.0, own=3.0)
    clock.answered(now=122.0, busy=said, own=said)
    clock.answered(now=123.0, busy=said, own=said)
    timing = run_timing(clock, started=100.0, ended=130.0, workers=2, first_round=1)
    assert timing is not None and timing["start_up_seconds"] >= 10.0
    assert 3.0 <= timing["schedule_seconds"] <= timing["site_seconds"] <= 3.0 + 12.0 + 13.0
    json.dumps(timing, allow_nan=False)


def test_a_run_in_which_no_site_worked_has_no_timing() -> None:
    assert run_timing(WorkClock(), started=0.0, ended=1.0, workers=2, first_round=1) is None
