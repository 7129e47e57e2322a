"""The planned image of every base model, and what a slice costs with it: for choosing ``-m``."""

from fedsam_pipeline.inference.windows import window_starts
from fedsam_pipeline.model.cost import encoder_gflop
from fedsam_pipeline.model.registry import BASE_MODELS
from fedsam_pipeline.planning.rules import make_plan, median_size
from fedsam_pipeline.specs.fingerprint import Fingerprint
from fedsam_pipeline.specs.plans import Plans


def cost_table(fingerprint: Fingerprint, plans: Plans) -> str:
    """One line a base model with published weights: image side, windows over the median slice, encoder GFLOP a slice.

    Args:
        fingerprint: of the federation.
        plans: the plan in use; its base model is marked, with the image and window of this very plan.
    """
    lines = ["base model      image  windows  GFLOP a slice (encoder, one pass over the median slice)"]
    for name, spec in BASE_MODELS.items():
        used = name == plans.base_model
        if spec.weights is None and not used:
            continue
        planned = plans if used else make_plan(fingerprint, spec, plans_name=plans.plans_name, target_spacing=plans.target_spacing)
        windows = windows_a_slice(fingerprint, planned)
        cost = windows * encoder_gflop(name, planned.image_size)
        lines.append(f"{name:<14}  {planned.image_size:>5}  {windows:>7}  {cost:>13.4g}{'   <- this plan' if used else ''}")
    return "\n".join(lines)


def windows_a_slice(fingerprint: Fingerprint, plans: Plans) -> int:
    """In-plane windows that cover the median slice at target spacing."""
    size = median_size(fingerprint, plans.target_spacing)
    height, width = (max(1, round(size[axis])) for axis in range(3) if axis != plans.slice_axis)
    rows, columns = (
        window_starts(extent, length, plans.window_overlap) for extent, length in zip((height, width), plans.window, strict=True)
    )
    return len(rows) * len(columns)
