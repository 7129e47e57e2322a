"""When a plan asks for prompts, and how training draws them."""

import pytest

from fedsam_pipeline.model.registry import base_model_spec
from fedsam_pipeline.planning.grids import exact_counts, log_position
from fedsam_pipeline.planning.objects import most_objects, smallest_class
from fedsam_pipeline.planning.prompt_rules import prompt_mode, prompts
from fedsam_pipeline.planning.rules import make_plan
from fedsam_pipeline.planning.thresholds import Thresholds
from fedsam_pipeline.specs.fingerprint import ClassFingerprint
from tests.planning.fingerprints import stated

LITE = base_model_spec("lite_medsam")


@pytest.mark.parametrize(
    ("share", "objects", "expected", "word"),
    [
        (0.0999, 1.0, "box", "less than 10 %"),
        (0.1, 1.0, "auto", "found without prompts"),
        (0.05, 3.9, "box", "less than 10 %"),
        (0.05, 4.0, "point", "4 objects"),
        (0.5, 4.0, "point", "4 objects"),
        (1.0, None, "auto", "found without prompts"),
    ],
)
def test_when_prompts_are_switched_on(share: float, objects: float | None, expected: str, word: str, rules: Thresholds) -> None:
    decision = prompt_mode(share, objects, "objects of X", rules.prompts)
    assert decision.value == expected
    assert word in decision.why


def test_prompts_follow_the_extent_of_objects(rules: Thresholds) -> None:
    plan, why = prompts(("organ", 30.0), 60.0, 1.0, rules.prompts)
    assert plan.mode == "auto"
    assert (plan.jitter_mm, plan.dropout) == pytest.approx((3.0, 0.65))
    assert "used only where" in why["jitter_mm"]
    plan, why = prompts(("organ", 3.0), 300.0, 1.0, rules.prompts)
    assert plan.mode == "box"
    assert (plan.jitter_mm, plan.dropout) == pytest.approx((0.3, 0.503))
    assert "used only where" not in why["jitter_mm"]
    fills, _ = prompts(("organ", 400.0), 300.0, 1.0, rules.prompts)
    assert fills.dropout == rules.prompts.dropout[1]
    always, why = prompts(None, 300.0, None, rules.prompts.model_copy(update={"mode": "box"}))
    assert (always.mode, always.jitter_mm, always.dropout) == ("box", 0.0, rules.prompts.dropout[1])
    assert "set in" in why["mode"]


def test_the_smallest_class_and_the_most_numerous_decide_on_prompts(rules: Thresholds) -> None:
    def of(side: float, components: int) -> ClassFingerprint:
        counts = exact_counts({log_position(side): 10})
        return ClassFingerprint(
            num_cases=10, volume_mm3=counts, components=exact_counts({components: 10}), extent_mm=(counts, counts, counts)
        )

    fingerprint = stated(size=(50, 100, 100))
    classes = {"organ": of(60.0, 1), "lesion": of(5.0, 2)}
    two = fingerprint.model_copy(update={"classes": classes, "labels": {"background": 0, "organ": 1, "lesion": 2}})
    found = smallest_class(two, (1, 2))
    assert found is not None
    assert found[0] == "lesion"
    assert found[1] == pytest.approx(5.0, rel=0.01)
    plans = make_plan(two, LITE)
    assert plans.prompts.mode == "box"
    assert plans.prompts.jitter_mm == pytest.approx(0.5, rel=0.01)
    assert "objects of lesion, the smallest" in plans.why["prompts.mode"]
    many = two.model_copy(update={"classes": classes | {"lesion": of(5.0, 6)}})
    assert most_objects(many) == 6
    assert make_plan(many, LITE).prompts.mode == "point"
