"""Plans that their base model cannot carry out."""

import pytest

from fedsam_pipeline.model.plan_rules import BASE_MODEL_RULES
from fedsam_pipeline.model.registry import BASE_MODELS
from tests.conftest import make_tiny_plans


def faults(**changes: object) -> list[str]:
    plans = make_tiny_plans(**changes)
    return [fault for rule in BASE_MODEL_RULES for fault in rule.faults(plans)]


@pytest.mark.parametrize("name", BASE_MODELS)
def test_multiples_of_the_window_fit_and_others_do_not(name: str) -> None:
    multiple = BASE_MODELS[name].window_multiple
    assert faults(base_model=name, image_size=3 * multiple) == []
    (fault,) = faults(base_model=name, image_size=3 * multiple + 1)
    assert fault.startswith(f"image_size: {3 * multiple + 1} is no multiple of {multiple}")
    assert fault.endswith(f"{3 * multiple} or {4 * multiple} would be")
    (fault,) = faults(base_model=name, image_size=1)
    assert fault.endswith(f"; {multiple} would be")


def test_an_unknown_base_model_lists_the_known_ones() -> None:
    (fault,) = faults(base_model="sam9", image_size=1)
    assert "there is no sam9" in fault and "lite_medsam" in fault
