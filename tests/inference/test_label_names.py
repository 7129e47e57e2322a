"""The names of classes beside masks: nnU-Net's ``dataset.json``, without a word on cases, and never over somebody else's file."""

import json
from pathlib import Path

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.files import write_json
from fedsam_pipeline.inference.label_names import LabelFile, copied_content, label_content
from tests.inference.plans_for_tests import make_plans

REGIONS = {
    "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
    "regions_class_order": [1, 2],
    "sites": {"site_a": ["mueller"]},
    "patients": {"mueller": "Mueller"},
    "channel_names": {"0": "MR"},
}


def test_a_fold_says_its_labels_and_nothing_of_its_cases(tmp_path: Path) -> None:
    plans = make_plans(labels={"background": 0, "whole_1": 1, "core": 2})
    write_json(tmp_path / "dataset.json", REGIONS)
    content = label_content(tmp_path, plans)
    assert content == {"channel_names": {"0": "MR"}, "labels": REGIONS["labels"], "regions_class_order": [1, 2]}
    write_json(tmp_path / "dataset.json", content)  # as a bundle holds it
    assert label_content(tmp_path, plans) == content
    scheme = LabelFile(tmp_path / "x.json", content, None).scheme
    assert scheme.classes == plans.labels and scheme.scored == {"whole": (1, 2), "core": (2,)}


def test_a_fold_without_the_file_has_the_classes_of_its_plan(tmp_path: Path) -> None:
    labels = {"background": 0, "anterior": 1, "posterior": 2}
    assert label_content(tmp_path, make_plans()) == {"channel_names": {"0": "MR"}, "labels": labels}
    write_json(tmp_path / "dataset.json", {"labels": labels, "regions_class_order": ["anything"], "sites": {}})
    assert label_content(tmp_path, make_plans()) == {"channel_names": {"0": "MR"}, "labels": labels}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "has no labels"),
        ('{"name": 1}', "has no labels"),
        ('{"labels": {"background": 0, "liver": 7}}', "not numbered as expected"),
        ('{"labels": {"background": 0, "liver": 1, "spleen": 2}}', "not those of its plan"),
    ],
)
def test_broken_files_of_a_fold_are_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(FedsamError, match=rf"{words}[\s\S]*dataset.json[\s\S]*fix"):
        label_content(tmp_path, make_plans())


def test_a_file_of_ours_is_replaced_and_another_is_not(tmp_path: Path) -> None:
    path = tmp_path / "dataset.json"
    liver, heart = ({"channel_names": {"0": "MR"}, "labels": {"background": 0, name: 1}} for name in ("liver", "heart"))
    for content in (liver, heart):
        file = LabelFile(path, content, ".nii.gz")
        file.check()
        file.write()
        found = json.loads(path.read_text())
        assert found.pop("description").startswith("Label values of the predicted masks")
        assert found == content | {"file_ending": ".nii.gz"}
    write_json(path, heart | {"sites": {"site_a": ["x"]}})  # a copy of the data set's own, put here for an evaluation
    before = path.read_bytes()
    LabelFile(path, heart, None).check()
    LabelFile(path, heart, None).write()
    assert path.read_bytes() == before
    with pytest.raises(
        FedsamError, match=r"another file stands where the labels of the masks are to be written[\s\S]*choose another folder"
    ):
        LabelFile(path, liver, None).check()
    path.write_text("no JSON")
    with pytest.raises(FedsamError, match="cannot be read as JSON"):
        LabelFile(path, liver, None).check()


def test_an_ensemble_takes_the_names_of_its_first_member_that_has_them(tmp_path: Path) -> None:
    assert copied_content([tmp_path]) is None
    first, second = tmp_path / "a", tmp_path / "b"
    write_json(second / "dataset.json", REGIONS)
    expected = {"channel_names": {"0": "MR"}, "labels": REGIONS["labels"], "regions_class_order": [1, 2]}
    assert copied_content([first, second]) == expected
    write_json(first / "dataset.json", {"names": ["liver"]})
    with pytest.raises(FedsamError, match=r"a dataset\.json beside masks has no labels"):
        copied_content([first, second])
