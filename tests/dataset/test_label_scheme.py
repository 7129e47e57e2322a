"""Regions, the ignore label and partial labels, as dataset.json states them."""

from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsam_pipeline.dataset.label_scheme import IGNORE, LabelScheme, mark_ignored, read_label_scheme
from fedsam_pipeline.errors import FedsamError

BRATS = {"background": 0, "whole_tumor": [1, 2, 3], "tumor_core": [2, 3], "enhancing": 3}


def scheme(labels: Any, **keys: Any) -> LabelScheme:
    return read_label_scheme({"labels": labels} | keys, Path("dataset.json"))


def test_plain_classes() -> None:
    found = scheme({"liver": 2, "background": 0, "spleen": [1]})  # nnU-Net: a list of one is no region
    assert list(found.classes.items()) == [("background", 0), ("spleen", 1), ("liver", 2)]
    assert (found.ignore, found.regions) == (None, {})
    assert found.scored == {"spleen": (1,), "liver": (2,)}


def test_regions_are_sets_of_named_values() -> None:
    found = scheme(BRATS, regions_class_order=[1, 2, 3])
    assert list(found.classes.items()) == [("background", 0), ("whole_tumor_1", 1), ("tumor_core_2", 2), ("enhancing", 3)]
    assert list(found.regions.items()) == [("whole_tumor", (1, 2, 3)), ("tumor_core", (2, 3)), ("enhancing", (3,))]
    assert found.scored == found.regions
    assert found.annotatable == ("enhancing", "tumor_core", "tumor_core_2", "whole_tumor", "whole_tumor_1")


def test_names_of_values_do_not_depend_on_the_order_of_the_file() -> None:
    labels = {"background": [0], "b": [2, 1], "a": [1, 2], "c": [3], "d": [3, 3]}
    found = [scheme(dict(items), regions_class_order=[1, 2, 3, 3]) for items in permutations(labels.items())]
    assert all(list(each.classes.items()) == list(found[0].classes.items()) for each in found)
    assert all(list(each.regions.items()) == list(found[0].regions.items()) for each in found)
    assert found[0].classes == {"background": 0, "a_1": 1, "a_2": 2, "c": 3}


@pytest.mark.parametrize("labels", [{"background": 0, "organ": 1}, {"background": 0, "all": [1, 2], "core": 2}])
def test_the_ignore_label_is_no_class(labels: dict[str, Any]) -> None:
    keys = {"regions_class_order": [1, 2]}
    plain = scheme(labels, **keys)
    highest = max(plain.classes.values()) + 1
    found = scheme(labels | {"ignore": highest}, **keys)
    assert found == LabelScheme(plain.classes, highest, plain.regions)


@pytest.mark.parametrize(
    ("labels", "order", "words"),
    [
        ({"background": 0, "organ": 1, "ignore": 3}, None, 'not the highest value(.|\n)*"ignore": 3(.|\n)*2, one above'),
        ({"background": 0, "organ": 2, "ignore": 1}, None, "not the highest value"),
        ({"background": 0, "organ": 1, "ignore": [2, 3]}, None, "not the highest value"),
        ({"background": 0, "organ": 1, "ignore": "2"}, None, "not the highest value"),
        ({"background": 0, "organ": 1, "other": 1}, None, "not numbered as expected"),
        ({"background": 0, "all": [1, 3]}, [1], "not numbered as expected"),
        ({"background": 0, "all": [0, 1, 2]}, [1], "not numbered as expected"),
        ({"background": 0, "all": [1, 2], "none": []}, [1, 2], "not numbered as expected"),
        ({"background": 0, "all": [1, True]}, [1], "not numbered as expected"),
        ({"background": [0, 1], "all": [1, 2]}, [1], "not numbered as expected"),
        (BRATS, None, "regions need regions_class_order(.|\n)*3 label values(.|\n)*whole_tumor, tumor_core, enhancing"),
        (BRATS, [1, 2], "regions need regions_class_order"),
        (BRATS, [1, 2, 4], "regions need regions_class_order"),
        (BRATS, [1, [2], 3], "regions need regions_class_order"),
        ({"background": 0, "a": [1, 2], "a_1": [2, 3]}, [1, 2], "collide(.|\n)*rename the region a_1"),
        ({"background": 0, "a": [1, 2, 3], "a_1": [2]}, [1, 2], "collide"),
    ],
)
def test_labels_that_cannot_be_used(labels: Any, order: Any, words: str) -> None:
    with pytest.raises(FedsamError, match=words) as caught:
        scheme(labels, **({} if order is None else {"regions_class_order": order}))
    assert caught.value.fix


def test_what_sites_annotated() -> None:
    plain = scheme({"background": 0, "liver": 1, "spleen": 2, "ignore": 3})
    assert plain.annotated({"b": ["spleen", "background"], "a": ["liver", "spleen"], "c": ["liver"]}) == {"b": (2,), "c": (1,)}
    regions = scheme(BRATS, regions_class_order=[1, 2, 3])
    assert regions.annotated({"a": ["tumor_core"], "b": ["whole_tumor"], "c": ["whole_tumor_1"]}) == {"a": (2, 3), "c": (1,)}
    assert plain.scorable((2,)).tolist() == [False, True]
    assert regions.scorable((2, 3)).tolist() == [False, True, True] and not regions.scorable((1,)).any()


def test_ignored_voxels_are_marked() -> None:
    labels = np.array([0, 1, 3, 3], np.int16)
    assert mark_ignored(labels, None) is labels
    found = mark_ignored(labels, 3)
    assert found.tolist() == [0, 1, IGNORE, IGNORE] and found.dtype == np.int16
