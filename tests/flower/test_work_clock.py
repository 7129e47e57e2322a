"""The sites' own work: when it began, and what it takes on so many workers."""

import time
from pathlib import Path

import pytest
from flwr.app import Message
from hypothesis import given
from hypothesis import strategies as st

from fedsam_pipeline.flower.messages import CONFIG, METRICS, PAYLOAD
from fedsam_pipeline.flower.work_clock import WorkClock, longest_first
from tests.flower.federations import Federation

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
    clock.next_exchange(now=100.0)
    clock.answered(now=110.0, busy=8.0, own=6.0)
    clock.answered(now=111.0, busy=10.0, own=9.0)
    clock.next_exchange(now=112.0)
    clock.answered(now=120.0, busy=5.0, own=5.0)
    assert clock.began == 101.0
    assert clock.site_seconds == 20.0
    assert clock.schedule_seconds(2) == 9.0 + 5.0
    assert clock.schedule_seconds(1) == 20.0
    clock.alone(3.0, now=130.0)
    assert clock.began == 101.0
    assert clock.schedule_seconds(2) == 9.0 + 5.0 + 3.0


@given(st.lists(st.tuples(st.floats(0.0, 10.0), st.floats(allow_nan=False), st.floats(allow_nan=False)), min_size=1, max_size=5))
def test_no_site_worked_longer_than_its_exchange_whatever_it_says(answers: list[tuple[float, float, float]]) -> None:
    clock = WorkClock()
    clock.next_exchange(now=100.0)
    for after, busy, own in answers:
        clock.answered(now=100.0 + after, busy=busy, own=own)
    assert clock.began is not None and 100.0 <= clock.began <= 100.0 + max(after for after, _, _ in answers)
    assert 0.0 <= clock.site_seconds <= sum(after for after, _, _ in answers) + 1e-9


def test_of_a_run_no_time_is_believed_that_cannot_be_and_none_that_came_with_a_refused_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = Federation(tmp_path)
    pull = federation.grid.pull_messages

    def changed(ids: set[str]) -> list[Message]:
        replies = list(pull(ids))
        for reply in replies:
            site = reply.content.config_records[CONFIG]["site"]
            if site != "site_c":
                reply.content.metric_records[METRICS]["seconds"] = 1e308
                reply.content.metric_records[METRICS]["validation_seconds"] = 1e308
            if site == "site_b":
                del reply.content[PAYLOAD]
        return replies

    monkeypatch.setattr(federation.grid, "pull_messages", changed)
    started = time.perf_counter()
    federation.run()
    lasted = time.perf_counter() - started
    assert [list(record.progress["refused"]) for record in federation.records] == 3 * [["site_b"]]
    honest = sum(record.progress["sites"]["site_c"]["seconds"] for record in federation.records)
    clock = federation.loop.clock
    assert clock.began is not None and clock.began >= started
    assert honest < clock.site_seconds <= lasted + honest
