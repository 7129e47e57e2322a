"""Bundles for tests: made, read, rewritten, refused."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.model.plain_zip import write_plain_zip
from fedsam_pipeline.pipeline.export_model import export_model
from fedsam_pipeline.pipeline.import_model import import_model
from tests.pipeline.trained_runs import RUN, write_fold

Members = dict[str, bytes]
RESULTS = Path("fedsam_data/results")


def make_bundle(folder: Path) -> Path:
    """A bundle of two folds, and the run it was made of, in one folder. Tests leave it as it is."""
    for fold in (0, 1):
        write_fold(folder / RUN / f"fold_{fold}", seed=fold)
    export_model(folder / "model.zip", model=folder / RUN, licence="CC-BY-4.0")
    return folder


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def files_below(folder: Path) -> Members:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewritten(made: Path, change: Callable[[Members, dict[str, Any]], None]) -> Path:
    """The bundle with other members; afterwards the index has the right hashes and sizes of those that it lists."""
    members = members_of(made / "model.zip")
    index = json.loads(members["index.json"])
    change(members, index)
    for entry in index["members"]:
        if entry["name"] in members:
            content = members[entry["name"]]
            entry |= {"num_bytes": len(content), "file_sha256": hashlib.sha256(content).hexdigest()}
    members["index.json"] = json.dumps(index).encode()
    write_plain_zip(Path("other.zip"), members)
    return Path("other.zip")


def refused(path: Path, words: str) -> None:
    """The command ends with code 2 and an error of these words, and leaves nothing."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(FedsamError, match=words) as caught:
        import_model(path)
    assert "fix:" in str(caught.value)
    assert sorted(Path().rglob("*")) == before
