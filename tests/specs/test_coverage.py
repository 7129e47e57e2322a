"""What a coverage document refuses."""

import json
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.coverage import Coverage
from tests.inference.coverage_for_tests import make_coverage


def test_a_coverage_comes_back_as_it_was_written(tmp_path: Path) -> None:
    coverage = make_coverage()
    coverage.save(tmp_path / "coverage.json")
    assert Coverage.load(tmp_path / "coverage.json") == coverage


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"spacing": [[2, 1], [1, 1], [1, 1]]}, "spacing: 2 to 1 along z is no range"),
        ({"extent": [[1, 9], [0, 0], [-1, 2]]}, r"extent: 0 to 0 along y[\s\S]*extent: -1 to 2 along x"),
        ({"channels": [{"name": "MR", "spans": [[1, 5], [4, 9]]}]}, r"channels\.0\.spans: the intervals do not rise"),
        ({"channels": []}, "channels: "),
        ({"foreground_share": 1.5}, "foreground_share: "),
        ({"schema_version": 2}, "schema_version: "),
        ({"cases": ["patient"]}, "cases: unknown key"),
    ],
)
def test_what_is_refused(changes: dict[str, object], words: str, tmp_path: Path) -> None:
    path = tmp_path / "coverage.json"
    path.write_text(json.dumps(make_coverage().to_dict() | changes))
    with pytest.raises(FedsamError, match=words):
        Coverage.load(path)
