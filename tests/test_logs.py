"""The log file beside a command's output."""

import logging
import re
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.logs import log_file

log = logging.getLogger("fedsam_pipeline.test_logs")


@pytest.fixture(autouse=True)
def _levels() -> None:
    log.setLevel(logging.INFO)


def test_a_dated_file_holds_what_was_logged_inside_the_block(tmp_path: Path) -> None:
    log.info("before")
    with log_file(tmp_path / "logs", "train") as path:
        log.info("round %d of Größe", 3)
        log.debug("too fine")
    log.info("after")
    assert path.parent == tmp_path / "logs"
    assert re.fullmatch(r"train_\d{8}_\d{6}\.log", path.name)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if "round 3 of Größe" in line and " INFO fedsam_pipeline.test_logs: " in line]
    assert not [line for line in lines if "before" in line or "after" in line or "too fine" in line]


def test_an_undated_file_is_continued(tmp_path: Path) -> None:
    for number in (1, 2):
        with log_file(tmp_path, "site", dated=False) as path:
            log.info("message %d", number)
    assert path == tmp_path / "site.log"
    assert [line.rsplit(" ", 1)[-1] for line in path.read_text().splitlines() if "message" in line] == ["1", "2"]


def test_a_failure_closes_the_file_and_passes_on(tmp_path: Path) -> None:
    handlers = list(logging.getLogger().handlers)
    with pytest.raises(ZeroDivisionError), log_file(tmp_path, "train"):
        raise ZeroDivisionError
    assert logging.getLogger().handlers == handlers


def test_nested_files_both_receive(tmp_path: Path) -> None:
    with log_file(tmp_path, "outer", dated=False) as outer, log_file(tmp_path, "inner", dated=False) as inner:
        log.info("both")
    assert "both" in outer.read_text() and "both" in inner.read_text()


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("")
    with (
        pytest.raises(FedsamError, match=r"cannot write a log file[\s\S]*blocked[\s\S]*choose another output folder"),
        log_file(tmp_path / "blocked" / "logs", "train"),
    ):
        pass
