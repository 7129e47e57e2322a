"""Work that outlives the process that starts it: begun once, begun again after a crash, and its failure told once."""

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import read_json
from fedsam_pipeline.pipeline import site_work
from fedsam_pipeline.pipeline.site_job import DONE, LOG, MOST_STARTS, SiteJob, work


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of jobs whose process would have been started."""
    folders: list[Path] = []
    monkeypatch.setattr("subprocess.Popen", lambda command, **_: folders.append(Path(command[-1])))
    return folders


def a_job(folder: Path, **asked: Any) -> SiteJob:
    return SiteJob(folder, {"kind": "fingerprint", "site": "site_a", **asked})


def test_it_is_begun_again_until_it_is_done(tmp_path: Path, started: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Mapping[str, Any]] = []

    def measure(asked: Mapping[str, Any]) -> str:
        done.append(asked)
        return "what may leave"

    monkeypatch.setitem(site_work.WORK, "fingerprint", measure)
    assert a_job(tmp_path).told() is None
    assert a_job(tmp_path).told() is None, "its process is gone, so the next question starts another"
    assert len(started) == 2 and len(set(started)) == 1
    work(started[0])
    assert a_job(tmp_path).told() == a_job(tmp_path).told() == "what may leave"
    assert len(started) == 2 and done == [{"kind": "fingerprint", "site": "site_a"}]
    assert a_job(tmp_path, run_id="another").told() is None
    assert len(set(started)) == 2


def test_a_process_that_always_dies_is_not_started_for_ever(tmp_path: Path, started: list[Path]) -> None:
    for _ in range(MOST_STARTS):
        assert a_job(tmp_path).told() is None
    with pytest.raises(FedsamError, match=r"ended without a result[\s\S]*3 starts[\s\S]*output\.log"):
        a_job(tmp_path).told(patience=60)
    assert len(started) == MOST_STARTS
    assert a_job(tmp_path).told() is None and len(started) == MOST_STARTS + 1, "the next run may try again"


def test_short_work_is_waited_for(tmp_path: Path, started: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(site_work.WORK, "fingerprint", lambda _asked: "told")
    monkeypatch.setattr("time.sleep", lambda _seconds: work(started[0]))
    assert a_job(tmp_path).told(patience=60) == "told" and len(started) == 1


def test_one_process_works_at_a_time(tmp_path: Path, started: list[Path]) -> None:
    a_job(tmp_path).told()
    with open(started[0] / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert a_job(tmp_path).told() is None
    assert len(started) == 1


def test_a_failure_is_told_and_then_tried_again(tmp_path: Path, started: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_asked: Mapping[str, Any]) -> str:
        raise FedsamError("a case is broken", path="case_3.nii.gz")

    monkeypatch.setitem(site_work.WORK, "fingerprint", fail)
    a_job(tmp_path).told()
    work(started[0])
    assert "a case is broken" in read_json(started[0] / DONE)["failed"]
    with pytest.raises(FedsamError, match=r"could not get ready[\s\S]*case_3[\s\S]*job\.log"):
        a_job(tmp_path).told()
    assert a_job(tmp_path).told() is None and len(started) == 2
    assert "case_3.nii.gz" in (started[0] / LOG).read_text(), "the log that the error names has the whole of it"


def test_a_job_that_cannot_be_read_fails(tmp_path: Path, started: list[Path]) -> None:
    a_job(tmp_path).told()
    (started[0] / "asked.json").write_text("{")
    work(started[0])
    with pytest.raises(FedsamError, match="could not get ready"):
        a_job(tmp_path).told()
