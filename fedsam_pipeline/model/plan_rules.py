"""What a plan must fulfil to be carried out with its base model."""

from collections.abc import Iterator

from fedsam_pipeline.model.registry import BASE_MODELS
from fedsam_pipeline.specs.document import Rule
from fedsam_pipeline.specs.plans import Plans


def _known_faults(plans: Plans) -> Iterator[str]:
    if plans.base_model not in BASE_MODELS:
        yield f"base_model: there is no {plans.base_model}, only {', '.join(sorted(BASE_MODELS))}"


def _size_faults(plans: Plans) -> Iterator[str]:
    spec = BASE_MODELS.get(plans.base_model)
    if spec is not None and plans.image_size % spec.window_multiple:
        multiple = spec.window_multiple
        near = sorted({max(multiple, side * multiple) for side in (plans.image_size // multiple, plans.image_size // multiple + 1)})
        yield (
            f"image_size: {plans.image_size} is no multiple of {multiple}, the attention window of {spec.name}; "
            f"{' or '.join(map(str, near))} would be"
        )


BASE_MODEL_RULES = (Rule(("base_model",), _known_faults), Rule(("base_model", "image_size"), _size_faults))
"""for ``Plans.load``"""
