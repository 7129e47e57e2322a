"""``postprocessing.json`` as it is saved, edited by hand, loaded and handed on."""

from pathlib import Path
from typing import Any

import pytest

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.specs.postprocessing import Decision, MaskRule, Postprocessing, SummedDelta

RULE = MaskRule(kind="minimum_volume", label="lesion", min_volume_mm3=12.5)


def document(**changes: Any) -> Postprocessing:
    decision = Decision(
        rule=RULE, kept=True, mean_delta=0.01, classes={"lesion": SummedDelta(delta_sum=0.12, num_cases=6)}, why="the mean improves"
    )
    values: dict[str, Any] = {"dataset_name": "Dataset001_Demo", "plan_sha256": "0" * 64, "steps": [RULE], "decisions": [decision]}
    return Postprocessing.model_validate(values | changes)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    document().save(tmp_path / "postprocessing.json")
    assert Postprocessing.load(tmp_path / "postprocessing.json") == document()


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ({"kind": "fill_holes"}, "steps.0.label: fill_holes needs the name of a class"),
        ({"kind": "minimum_volume", "label": "lesion"}, "steps.0.min_volume_mm3: minimum_volume needs one"),
        ({"kind": "largest_component", "min_volume_mm3": 3}, "steps.0.min_volume_mm3: largest_component has none"),
        ({"kind": "minimum_volume", "label": "lesion", "min_volume_mm3": 0}, "steps.0.min_volume_mm3: Input should be greater than 0"),
        ({"kind": "smooth", "label": "lesion"}, "steps.0.kind: Input should be"),
        ({"kind": "fill_holes", "lable": "lesion"}, "steps.0.lable: unknown key, did you mean label?"),
    ],
)
def test_a_rule_that_makes_no_sense_is_named(rule: dict[str, Any], fault: str) -> None:
    with pytest.raises(FedsamError, match="not a valid Postprocessing document") as caught:
        Postprocessing.from_dict(document().to_dict() | {"steps": [rule]}, path="postprocessing.json")
    assert fault in str(caught.value.found)


def test_rules_read_as_words() -> None:
    assert str(RULE) == "components of lesion from 12.5 mm3"
    assert str(MaskRule(kind="largest_component")) == "largest component of all foreground"
    assert str(MaskRule(kind="fill_holes", label="organ")) == "holes filled of organ"


def test_figures_of_few_cases_are_not_handed_on() -> None:
    assert document().published(6).decisions == document().decisions
    assert document().published(6).sites == () and "choice" not in document().published(6).why
    assert document().published(7).decisions == ()
    assert document().published(7).steps == (RULE,)
