"""``dataset.json``, ``site.toml`` and split files with anything in them: a clear refusal, or a dataset whose paths are there."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedsam_pipeline.dataset.raw import load_raw_dataset
from fedsam_pipeline.errors import FedsamError
from tests.dataset.raw_for_tests import CASES, CONTENT, make_raw
from tests.mutations import changed_once, mutated_bytes, mutated_json

REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
EXPLICIT = {
    case: {"images": [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in (0, 1)], "label": f"labelsTr/{case}.nii.gz"} for case in CASES
}
FULL = CONTENT | {"site_labels": {"a": ["core"]}, "patients": {"a1": "p1", "a2": "p1"}, "regions_class_order": [1, 2], "labels": REGIONS}
SITE = 'site = "a"\n[labels]\n1 = "organ"\n2 = "nodule"\n[channels]\norder = ["T2", "T1"]\n'
quick = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_raw(tmp_path_factory.mktemp("raw"))


def loads_or_says_why(folder: Path) -> None:
    try:
        dataset = load_raw_dataset(folder)
    except FedsamError as error:
        assert error.fix and len(str(error)) < 100_000
        return
    paths = [path for case in dataset.cases for path in (*dataset.image_paths(case), dataset.label_path(case))]
    assert all(path.is_file() for path in paths)
    assert dataset.label_scheme.scored and all(dataset.site_of(case) for case in dataset.cases)
    json.dumps([dataset.labels, dataset.sites, dataset.patients, dataset.site_labels], ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize("content", [CONTENT, FULL, CONTENT | {"dataset": EXPLICIT}], ids=["plain", "full", "explicit"])
def test_junk_in_every_place(folder: Path, content: dict[str, object]) -> None:
    for _, changed in changed_once(content):
        (folder / "dataset.json").write_text(json.dumps(changed))
        loads_or_says_why(folder)


@quick
@given(data=st.data())
def test_several_changes_at_once(folder: Path, data: st.DataObject) -> None:
    (folder / "dataset.json").write_text(json.dumps(data.draw(mutated_json(FULL))))
    loads_or_says_why(folder)


@quick
@given(data=st.data())
def test_a_damaged_dataset_json(folder: Path, data: st.DataObject) -> None:
    (folder / "dataset.json").write_bytes(data.draw(mutated_bytes(json.dumps(FULL).encode())))
    loads_or_says_why(folder)


@quick
@given(data=st.data())
def test_a_damaged_site_toml(folder: Path, data: st.DataObject) -> None:
    (folder / "dataset.json").write_text(json.dumps({key: value for key, value in CONTENT.items() if "sites" not in key}))
    (folder / "site.toml").write_bytes(data.draw(mutated_bytes(SITE.encode())))
    try:
        loads_or_says_why(folder)
    finally:
        (folder / "site.toml").unlink()
