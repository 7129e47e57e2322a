"""Rules on a label mask: at choosing on the plan's grid, at prediction on the image's own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsam_pipeline.errors import FedsamError
from fedsam_pipeline.postprocessing.components import bounding_box, enclosed, in_small_components, outside_largest
from fedsam_pipeline.specs.postprocessing import MaskRule

ROUNDING = 1e-9
"""relative: so that a component of exactly the smallest volume stays whatever the spacing's last digit"""
Labels = NDArray[Any]


def apply_rules(mask: Labels, spacing: Sequence[float], steps: Sequence[MaskRule], labels: Mapping[str, int]) -> Labels:
    """The mask after all rules, one after the other.

    Beside the mask and its copy it takes one byte a voxel, and in the bounding box of what a rule looks at about seven.

    Args:
        mask: (Z, Y, X) class numbers, background 0; left as it is.
        spacing: mm along the same axes.
        steps: the rules.
        labels: name to value.

    Returns:
        The same shape and type; ``mask`` itself where nothing changed.

    Raises:
        FedsamError: a rule names a class that there is not.
    """
    check_labels(steps, labels)
    for rule in steps:
        mask = _applied(mask, float(np.prod(spacing)), rule, labels)
    return mask


def check_labels(steps: Sequence[MaskRule], labels: Mapping[str, int]) -> None:
    """Refuses rules for classes that a model does not know.

    Raises:
        FedsamError: names them.
    """
    known = [name for name, value in labels.items() if value]
    if unknown := sorted({rule.label for rule in steps if rule.label is not None} - set(known)):
        raise FedsamError(
            "postprocessing is for classes that the model does not have",
            found=", ".join(unknown),
            expected=", ".join(known),
            fix="copy the whole model folder again, or --disable_postprocessing",
        )


def _applied(mask: Labels, voxel_mm3: float, rule: MaskRule, labels: Mapping[str, int]) -> Labels:
    value = 0 if rule.label is None else labels[rule.label]
    looked_at = mask > 0 if rule.label is None else mask == value
    box = bounding_box(looked_at)
    if box is None:
        return mask
    inside = looked_at[box]
    if rule.kind == "fill_holes":
        changed, into = enclosed(inside) & (mask[box] == 0), value
    elif rule.kind == "largest_component":
        changed, into = outside_largest(inside), 0
    else:
        smallest = (rule.min_volume_mm3 or 0.0) / voxel_mm3
        changed, into = in_small_components(inside, smallest * (1 - ROUNDING)), 0
    if not changed.any():
        return mask
    result = mask.copy()
    result[box][changed] = into
    return result
