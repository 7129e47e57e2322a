"""The sites' own work: when it began, and what it takes on so many workers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.flower.work_clock import WorkClock, longest_first

JOBS = st.lists(st.floats(0.0, 1e4), max_size=12)


def test_the_longest_start_first() -> None:
    assert longest_first([2.0, 2.0, 3.0], 2) == 4.0
    assert longest_first([1.0, 1.0, 1.0], 2) == 2.0
    assert longest_first([], 3) == 0.0


@given(JOBS, st.integers(1, 5))
def test_a_schedule_is_no_shorter_than_the_longest_job_or_an_even_share(jobs: list[float], workers: int) -> None:
    found = longest_first(jobs, workers)
    share = sum(jobs) / workers
    assert found >= max([share, *jobs]) * (1 - 1e-9)
    assert found <= share + max(jobs, default=0.0) + 1e-9
    assert longest_first(jobs, 1) == pytest.approx(sum(jobs))


def test_work_begins_with_the_first_site_and_exchanges_follow_each_other() -> None:
    clock = WorkClock()
    assert clock.began is None and clock.schedule_seconds(2) == 0.0
    clock.next_exchange()
    clock.answered(now=110.0, busy=8.0, own=6.0)
    clock.answered(now=111.0, busy=10.0, own=9.0)
    clock.next_exchange()
    clock.answered(now=120.0, busy=5.0, own=5.0)
    assert clock.began == 101.0
    assert clock.site_seconds == 20.0
    assert clock.schedule_seconds(2) == 9.0 + 5.0
    assert clock.schedule_seconds(1) == 20.0
    clock.alone(3.0, now=130.0)
    assert clock.began == 101.0
    assert clock.schedule_seconds(2) == 9.0 + 5.0 + 3.0
