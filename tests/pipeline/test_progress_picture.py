"""The picture of a run's progress, drawn beside it."""

from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.pipeline.progress_picture import ProgressPicture
from fedsam_pipeline.report.curves import progress_png
from tests.report.test_curves import RECORDS


def test_the_last_picture_is_there_at_the_end(tmp_path: Path) -> None:
    with ProgressPicture(tmp_path / "progress.png") as picture:
        picture.draw(RECORDS[:1])
        picture.draw(RECORDS)
    progress_png(RECORDS, tmp_path / "plain.png")
    assert (tmp_path / "progress.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


def test_a_picture_that_cannot_be_written_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    with pytest.raises(FedsamError), ProgressPicture(tmp_path / "file" / "progress.png") as picture:
        picture.draw(RECORDS)
    with pytest.raises(KeyboardInterrupt), ProgressPicture(tmp_path / "file" / "progress.png") as picture:
        picture.draw(RECORDS)
        raise KeyboardInterrupt
